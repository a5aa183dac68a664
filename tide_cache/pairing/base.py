"""What every way to make samples of rows has: two tokenizers, and how samples are cut."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from tide_cache.pairing.collecting import Limits
from tide_cache.pairing.report import PairedRows
from tide_cache.pairing.spelling import Spelling
from tide_cache.pairing.tokenizer import TextTokenizer


@dataclass(frozen=True, eq=False)
class Pairer(ABC):
    """Makes samples of rows for one teacher and one student; a pure function of its inputs.

    Attributes:
        teacher: The teacher's tokenizer.
        student: The student's.
        teacher_max_length: Longest teacher sequence, in tokens.
        student_max_length: Longest student sequence, in tokens.
        student_block_size: Tokens per block.
        fill_last_block: Whether the student's last block is filled with supervised end-of-text tokens.
    """

    teacher: TextTokenizer
    student: TextTokenizer
    _: KW_ONLY
    teacher_max_length: int
    student_max_length: int
    student_block_size: int
    fill_last_block: bool

    @abstractmethod
    def pair_many(self, rows: Sequence[Any]) -> PairedRows:
        """Make samples of rows, in their order."""

    def spelling(self, teacher_vocab_size: int) -> Spelling:
        """Return the speller of this teacher's tokens for this student; takes seconds for a large vocabulary.

        Args:
            teacher_vocab_size: Ids of the teacher's logits.
        """
        return Spelling(self.teacher, self.student, teacher_vocab_size)

    @cached_property
    def limits(self) -> Limits:
        """How long a sample may be, and what fills its last block."""
        block_size = self.student_block_size if self.fill_last_block else 1
        return Limits(self.teacher_max_length, self.student_max_length, block_size, self.student.eos_id)
