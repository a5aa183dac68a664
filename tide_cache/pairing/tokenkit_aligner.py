"""The `tokenkit` aligner: chunks from bminixhofer/tokenkit, the aligner of the reference implementation.

It is a backend for comparison, not to be trusted: it sees the bytes that each token covers, without special tokens, and
every chunk that it gives is checked by position before it counts. The package called `tokenkit` on the Python index
is another project; which one is installed is found out without running any of its code.

Source of the interface: `tokenkit.align.get_alignment_indices` as TIDE's collator calls it. Public copies of tokenkit
have its arguments in two orders, under the same names, so it is called by name.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, metadata
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np

from tide_cache.errors import RunFileError
from tide_cache.pairing.alignment import Ints, tokens_within
from tide_cache.pairing.encoding import spell_printable
from tide_cache.pairing.streams import TokenStream
from tide_cache.records import Int32s

_INSTALL = "pip install git+https://github.com/bminixhofer/tokenkit"
_WAY_OUT = f"Install the right one: {_INSTALL}\nOr leave pairing.aligner out: the default, 'bytes', needs no package."
# A tokenizer's `replacements` name special tokens that stand for each other; contents have none.
_NO_SPECIAL_TOKENS = SimpleNamespace(model_kind_cls=SimpleNamespace(replacements={}))

Indices = list[tuple[int, int, int, int]]


class TokenkitAligner:
    """Aligns spans by tokenkit; called in place of `align_spans`."""

    def __init__(self) -> None:
        """Find tokenkit and try it.

        Raises:
            RunFileError: It is missing, is the unrelated package, cannot be imported, or answers wrongly.
        """
        self._get_indices = _import_tokenkit()
        try:
            found = self._indices(["a", "bc", "d"], ["ab", "c", "d"])
        except Exception as error:  # whatever a package that only looks right may raise
            raise _unfit(f"it raised {type(error).__name__}: {error}") from error
        if found != [(0, 2, 0, 2), (2, 3, 2, 3)]:
            raise _unfit(f"it gave {found}, expected [(0, 2, 0, 2), (2, 3, 2, 3)]")

    def __call__(
        self, teacher: TokenStream, student: TokenStream, teacher_spans_S2: Ints, student_spans_S2: Ints
    ) -> tuple[Int32s, Ints, Ints]:
        """Align many spans, one after another; a token that straddles the edge of a span is in no chunk.

        Args:
            teacher: The batch as the teacher sees it.
            student: The same rows as the student sees them.
            teacher_spans_S2: Byte ranges of the spans on the teacher's side.
            student_spans_S2: The same spans on the student's side: equal bytes, hence equal lengths.

        Returns:
            Chunks in token numbers of the batch, shape (C, 4), in the order of the spans; the span of each chunk; and
            how many chunks of each span were dropped because they do not cover the same bytes on both sides.
        """
        chunks: list[tuple[int, int, int, int]] = []
        span_C: list[int] = []
        num_rejected_S = np.zeros(len(student_spans_S2), np.int64)
        for span, spans in enumerate(zip(teacher_spans_S2, student_spans_S2, strict=True)):
            left, right = _Pieces(teacher, spans[0]), _Pieces(student, spans[1])
            found = self._indices(left.spelled, right.spelled) if left.spelled and right.spelled else []
            lawful = _lawful(found, left.edges, right.edges)
            num_rejected_S[span] = len(found) - len(lawful)
            rows = [(left.tokens[a], left.tokens[b], right.tokens[c], right.tokens[d]) for a, b, c, d in lawful]
            rows = [row for row in rows if min(row) >= 0]
            chunks += rows
            span_C += [span] * len(rows)
        return np.array(chunks, np.int32).reshape(-1, 4), np.array(span_C, np.int64), num_rejected_S

    def _indices(self, teacher_tokens: Sequence[str], student_tokens: Sequence[str]) -> Indices:
        found, *_ = self._get_indices(
            tokens_teacher=list(teacher_tokens),
            tokens_student=list(student_tokens),
            attention_mask_teacher=np.ones(len(teacher_tokens), bool),
            attention_mask_student=np.ones(len(student_tokens), bool),
            tokenizer_teacher=_NO_SPECIAL_TOKENS,
            tokenizer_student=_NO_SPECIAL_TOKENS,
        )
        return [(int(a), int(b), int(c), int(d)) for a, b, c, d in found]


class _Pieces:
    """A span cut where its tokens end; what straddling tokens leave at its edges are pieces without a token.

    Attributes:
        spelled: The bytes of each piece in printable characters, as tokenkit writes tokens.
        edges: Position of every cut, from the start of the span.
        tokens: Number of the token that begins at every cut; -1 at the edge of a straddling token.
    """

    def __init__(self, stream: TokenStream, span: Ints) -> None:
        (first,), (stop,) = tokens_within(stream.ends_N, span[None])
        cuts = range(int(first), int(stop) + 1) if stop > first else range(0)
        token_at = {(int(stream.ends_N[token - 1]) if token > 0 else 0) - int(span[0]): token for token in cuts}
        for edge in (0, int(span[1] - span[0])):
            token_at.setdefault(edge, -1)
        self.edges = sorted(token_at)
        self.tokens = [token_at[edge] for edge in self.edges]
        data = stream.bytes_in(int(span[0]), int(span[1]))
        self.spelled = [spell_printable(data[a:b]) for a, b in pairwise(self.edges)]


def _lawful(found: Indices, left: Sequence[int], right: Sequence[int]) -> Indices:
    """Keep the chunks that lie in the span, follow each other and cover equal bytes."""
    lawful: Indices = []
    teacher_end = student_end = 0
    for a, b, c, d in found:
        is_inside = teacher_end <= a < b < len(left) and student_end <= c < d < len(right)
        if is_inside and left[a] == right[c] and left[b] == right[d]:
            lawful.append((a, b, c, d))
            teacher_end, student_end = b, d
    return lawful


def _import_tokenkit() -> Callable[..., Any]:
    package = importlib.util.find_spec("tokenkit")
    if package is None:
        raise RunFileError(f"pairing.aligner: found 'tokenkit', but no such package is installed.\n{_WAY_OUT}")
    if PathFinder.find_spec("tokenkit.align", package.submodule_search_locations) is None:
        raise _unrelated(package.origin, "it has no module tokenkit.align")
    try:
        module = importlib.import_module("tokenkit.align")
    except ImportError as error:
        raise RunFileError(
            f"pairing.aligner: found 'tokenkit', which is installed at {package.origin} but cannot be imported: "
            f"{error}\nInstall what its requirements.txt names: its own installation brings none of it."
        ) from error
    if not callable(get_indices := getattr(module, "get_alignment_indices", None)):
        raise _unrelated(package.origin, "tokenkit.align has no get_alignment_indices")
    return get_indices  # type: ignore[no-any-return]


def _unrelated(origin: str | None, reason: str) -> RunFileError:
    try:
        about = metadata("tokenkit")
        found = f"tokenkit {about['Version']} ({about['Summary']})"
    except PackageNotFoundError:
        found = "a package"
    return RunFileError(
        f"pairing.aligner: expected bminixhofer/tokenkit, found {found} at {origin}: {reason}. The package of that "
        f"name on the Python index is an unrelated project; remove it: pip uninstall tokenkit\n{_WAY_OUT}"
    )


def _unfit(what: str) -> RunFileError:
    return RunFileError(
        f"pairing.aligner: the installed tokenkit does not align as bminixhofer/tokenkit does: asked to align a|bc|d "
        f"with ab|c|d, {what}.\n{_WAY_OUT}"
    )
