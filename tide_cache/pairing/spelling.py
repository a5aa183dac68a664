"""How the student would write what the teacher says: tuples of teacher tokens as tuples of student tokens.

Both stand for bytes. One teacher token that has a student token of the same bytes is that token; anything else is
tokenised anew by the student, and counts only if the result stands for the same bytes.

Shape suffixes: V teacher ids, J candidates, P student tokens of a candidate at most.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s
from tide_cache.pairing.remembered import Remembered
from tide_cache.pairing.tokenizer import TextTokenizer, shared_vocab_size
from tide_cache.records import Int32s

MAX_TOKENS = 8
"""A teacher token that the student writes in more tokens than this is never a candidate."""

_MEMORY = 1 << 20
"""Tuples of several tokens whose spelling is remembered; chunks repeat, so most are looked up."""


class Spelling:
    """Writes tuples of teacher tokens in student tokens."""

    def __init__(self, teacher: TextTokenizer, student: TextTokenizer, teacher_vocab_size: int):
        """Spell every token of the teacher once; takes seconds for a large vocabulary.

        Args:
            teacher: The teacher's tokenizer.
            student: The student's.
            teacher_vocab_size: Ids of the teacher's logits; those without a token are never candidates.
        """
        self._teacher, self._student = teacher, student
        own = min(teacher_vocab_size, teacher.vocab_size)
        spelled = [
            b"" if special else teacher.token_bytes.of(i)
            for i, special in enumerate(teacher.is_special_V[:own].tolist())
        ]
        self._spelled = [*spelled, *[b""] * (teacher_vocab_size - own)]
        self._specials = frozenset(np.flatnonzero(student.is_special_V).tolist())
        self._equal_V = self._byte_equal()
        self._tokens_VP, self._lengths_V = self._tokenised_alone()
        self._remembered: dict[int, Remembered] = {}

    def single(self, ids_J: Int32s, sizes_J: Int32s) -> Int32s:
        """Spell single teacher tokens in a given number of student tokens each.

        Args:
            ids_J: Teacher ids.
            sizes_J: Student tokens wanted for each.

        Returns:
            Student ids, shape (J, P), -1 beyond the size; a row begins with -1 where there is no such spelling.
        """
        width = int(sizes_J.max(initial=1))
        if width == 1 and sizes_J.all():
            return self._equal_V.take(ids_J)[:, None]
        result_JP = np.full((len(ids_J), width), -1, np.int32)
        is_one_J = sizes_J == 1
        result_JP[is_one_J, 0] = self._equal_V[ids_J[is_one_J]]
        fits_J = ~is_one_J & (self._lengths_V[ids_J] == sizes_J)
        shared = min(width, MAX_TOKENS)
        result_JP[fits_J, :shared] = self._tokens_VP[ids_J[fits_J], :shared]
        return result_JP

    def several(self, tuples_JM: npt.NDArray[np.integer[Any]]) -> tuple[Int32s, Int64s]:
        """Spell tuples of teacher tokens in as many student tokens as it takes.

        Args:
            tuples_JM: Teacher ids; those of tuples seen before are looked up.

        Returns:
            Student ids of all tuples, end to end, and their number for each [J]; 0 where bytes would change.
        """
        length = tuples_JM.shape[1]
        remembered = self._remembered.setdefault(length, Remembered(length))
        number_J = remembered.find(tuples_JM)
        missing_J = np.flatnonzero(number_J < 0)
        if len(missing_J):
            unknown = list(set(map(tuple, tuples_JM[missing_J].tolist())))
            if sum(map(len, self._remembered.values())) + len(unknown) > _MEMORY:
                self._remembered = {length: (remembered := Remembered(length))}
                missing_J = np.arange(len(tuples_JM))
                unknown = list(set(map(tuple, tuples_JM.tolist())))
            joined = [[self._spelled[i] for i in ids] for ids in unknown]
            texts = [b"".join(parts) if all(parts) else b"" for parts in joined]
            remembered.add(unknown, [ids or () for ids in self._encoded(texts)])
            number_J[missing_J] = remembered.find(tuples_JM[missing_J])
        return remembered.spellings(number_J)

    @property
    def num_student_ids(self) -> int:
        """Ids of the student; the one behind the last stands for none."""
        return self._student.vocab_size

    @cached_property
    def first_V(self) -> Int32s:
        """Student token that the bytes of each teacher id begin with; `num_student_ids` where there is none."""
        first_V = np.where(self._equal_V >= 0, self._equal_V, self._tokens_VP[:, 0])
        return np.where(first_V >= 0, first_V, self.num_student_ids).astype(np.int32)

    def _byte_equal(self) -> Int32s:
        """Student token of the same bytes for each teacher id, -1 for none."""
        by_bytes: dict[bytes, int] = {}
        for i in np.flatnonzero(~self._student.is_special_V).tolist():
            if self._student.tokens[i] is not None:
                by_bytes.setdefault(self._student.token_bytes.of(i), i)
        by_bytes.pop(b"", None)
        equal_V = np.array([by_bytes.get(text, -1) for text in self._spelled], np.int32)
        same = min(shared_vocab_size(self._teacher, self._student), len(equal_V))
        equal_V[:same] = np.arange(same)  # one vocabulary: every token is itself, those of the template too
        return equal_V

    def _tokenised_alone(self) -> tuple[Int32s, Int32s]:
        """Student tokens of each teacher id on its own, [V, P] and their number [V]; 0 where there are none."""
        tokens_VP = np.full((len(self._spelled), MAX_TOKENS), -1, np.int32)
        lengths_V = np.zeros(len(self._spelled), np.int32)
        for i, ids in enumerate(self._encoded(self._spelled)):
            if ids is None or len(ids) > MAX_TOKENS:
                continue
            tokens_VP[i, : len(ids)], lengths_V[i] = ids, len(ids)
            if len(ids) == 1 and self._equal_V[i] != i:
                self._equal_V[i] = ids[0]  # of several tokens of the same bytes, the one that it would write
        return tokens_VP, lengths_V

    def _encoded(self, spelled: Sequence[bytes]) -> list[tuple[int, ...] | None]:
        """Student tokens of byte strings; None for no bytes, for parts of characters, and where bytes would change."""
        result: list[tuple[int, ...] | None] = [None] * len(spelled)
        texts = {i: text for i, data in enumerate(spelled) if data and (text := _text(data)) is not None}
        # A tokenizer that puts a space before every text (SentencePiece) is asked again, after a line break.
        for lead in ("", "\n"):
            left = [i for i in texts if result[i] is None]
            for i, ids in zip(left, self._student.encode_ids([lead + texts[i] for i in left]), strict=True):
                result[i] = self._after(ids, lead.encode(), spelled[i])
        return result

    def _after(self, ids: list[int], lead: bytes, data: bytes) -> tuple[int, ...] | None:
        """Return the tokens for `data` that follow those for `lead` and a space; None if there are none."""
        spoken = self._student.token_bytes.join(ids)
        cut = len(spoken) - len(data)
        if spoken[cut:] != data or not self._specials.isdisjoint(ids):
            return None
        if spoken[:cut] not in ((lead, b" " + lead) if lead else (b"",)):
            return None
        first = length = 0
        while length < cut:
            length += len(self._student.token_bytes.of(ids[first]))
            first += 1
        return tuple(ids[first:]) if length == cut else None


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
