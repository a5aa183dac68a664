"""What an engine's files say of the samples of a build, with tokens and texts compared position by position.

Shape suffixes: M teacher tokens of a sample.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tide_cache.corpus.store import Corpus, store_rows
from tide_cache.errors import EngineFileError
from tide_cache.pairing import TextTokenizer
from tide_cache.progress import doing
from tide_cache.records import Int32s, SamplePair
from tide_cache.teacher.engine_files import FileFormat, files_in, format_of, hash_of, read_rows
from tide_cache.teacher.engine_rows import ENGINE_ROWS, UNKNOWN, EngineRow
from tide_cache.views.masking import whole_view

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
WAY_OUT = (
    "Ask the engine with the tokens that `tide-cache import-topk --write-prompts` writes, and give teacher.tokenizer, "
    "template and corpus as they were. Nothing was written."
)


class EngineTopK:
    """The rows of an engine's files, by sample.

    Attributes:
        path: Where they lie.
        format: Who wrote them.
        sha256: Of the files.
        depth: Listed ids at every position; the k of the run that wrote them.
    """

    def __init__(self, path: Path, tokenizer: TextTokenizer, vocab_size: int) -> None:
        """Read the files once, and check each row against itself.

        Args:
            path: A file, or a folder of files of one format.
            tokenizer: The teacher's.
            vocab_size: Ids of the teacher are below it.

        Raises:
            EngineFileError: A row cannot be used, or rows have different k; names row and position.
        """
        files = files_in(path)
        self.path = path
        self.format: FileFormat = format_of(files)
        with doing(f"Hashing {path}"):
            self.sha256 = hash_of(files)
        self._tokenizer = tokenizer
        self._number_of: dict[str | bytes, int] = {}
        self._is_named = False
        self._shallow: tuple[int, str] | None = None
        self._deep: tuple[int, str] | None = None
        with doing(f"Reading top-k of {path}"):
            self._rows: Corpus[EngineRow] = store_rows(self._noted(read_rows(files, vocab_size)), [], ENGINE_ROWS)
        self.depth = self._common_depth()

    def _noted(self, rows: Iterable[EngineRow]) -> Iterable[EngineRow]:
        """Note where each row is, and how deep its lists are."""
        for number, row in enumerate(rows):
            self._is_named = bool(row.name) if number == 0 else self._is_named
            if bool(row.name) != self._is_named:
                raise EngineFileError(f"{row.origin}: found some rows with sample_id and some without; give all one")
            if row.name in self._number_of:
                raise EngineFileError(f"{row.origin}: found sample {row.name!r} twice; keep one of the two rows")
            for key in [row.name] if row.name else _keys_of(row):
                self._number_of.setdefault(key, number)
            self._note_depths(row)
            yield row

    def _note_depths(self, row: EngineRow) -> None:
        said = np.flatnonzero(~np.isnan(row.truth_logprobs_M) | (row.depths_M > 0))
        if not len(said):
            return
        # The true token may be the last of a list only because it is true.
        surely_M = row.depths_M - ~row.is_certain_M
        for place, depths_M in (
            (said[row.depths_M[said].argmin()], row.depths_M),
            (said[surely_M[said].argmax()], surely_M),
        ):
            found = int(depths_M[place]), f"{row.origin}, position {place}"
            if depths_M is row.depths_M and (self._shallow is None or found[0] < self._shallow[0]):
                self._shallow = found
            if depths_M is surely_M and (self._deep is None or found[0] > self._deep[0]):
                self._deep = found

    def _common_depth(self) -> int:
        if self._shallow is None or self._deep is None:
            raise EngineFileError(f"{self.path}: found no log-probs; expected prompt_logprobs at every position")
        (least, shallow), (most, deep) = self._shallow, self._deep
        if most > least:
            raise EngineFileError(
                f"{self.path}: found {least} ids at {shallow}, and {most} at {deep}; expected equally many everywhere, "
                "besides the true token. Ask the engine for one k."
            )
        return least

    def of(self, pair: SamplePair) -> EngineRow:
        """Return the row of a sample, whose tokens and texts it has.

        Args:
            pair: The sample.

        Raises:
            EngineFileError: There is none, or it is about another text; names sample and position, what was found and
                what was expected.
        """
        key = str(pair.sample_id) if self._is_named else _key(pair.teacher_ids_M)
        number = self._number_of.get(key)
        if number is None and self._is_named:
            raise EngineFileError(
                f"{self.path}: found no row of sample {pair.sample_id!r} among {len(self._rows)}; expected one for "
                f"every sample of the corpus. {WAY_OUT}"
            )
        row = self._nearest(pair.teacher_ids_M) if number is None else self._rows[number]
        self._require_tokens(pair, row)
        self._require_texts(pair, row)
        self._require_said(pair, row)
        return row

    def _nearest(self, ids_M: Int32s) -> EngineRow:
        """Return the row that begins most like a text, for the message that says where it differs."""
        return max(self._rows, key=lambda row: _first_difference(row.token_ids_M, ids_M))

    def _require_tokens(self, pair: SamplePair, row: EngineRow) -> None:
        found_M, expected_M = row.token_ids_M, pair.teacher_ids_M
        if row.is_padded and len(found_M) == len(expected_M) + 1:
            found_M = found_M[:-1]
        place = _first_difference(found_M, expected_M)
        if place == len(found_M) == len(expected_M):
            return
        found, expected = (self._shown(ids_M, place) for ids_M in (found_M, expected_M))
        raise EngineFileError(
            f"{row.origin}: sample {pair.sample_id!r}, position {place}: found {found}, expected {expected}: the "
            f"teacher's tokenizer ({self._tokenizer.name}) cuts the rendered sample so. {WAY_OUT}"
        )

    def _shown(self, ids_M: Int32s, place: int) -> str:
        if place >= len(ids_M):
            return f"the end of the text after {len(ids_M)} tokens"
        return f"token {ids_M[place]} ({self._tokenizer.decode(ids_M[place : place + 1])!r})"

    def _require_texts(self, pair: SamplePair, row: EngineRow) -> None:
        """Compare the texts that the engine wrote; what is a part of a character has none to compare."""
        for place, (token_id, found) in enumerate(zip(pair.teacher_ids_M.tolist(), row.texts_M, strict=False)):
            if not found or REPLACEMENT in found:
                continue
            expected = self._tokenizer.token_bytes.of(token_id).decode(errors="replace")
            if REPLACEMENT not in expected and found.strip(" ▁") != expected.strip(" ▁"):
                raise EngineFileError(
                    f"{row.origin}: sample {pair.sample_id!r}, position {place}: found the text {found!r} for token "
                    f"{token_id}, expected {expected!r}, as the teacher's tokenizer ({self._tokenizer.name}) has it. "
                    f"The engine used another tokenizer. {WAY_OUT}"
                )

    def _require_said(self, pair: SamplePair, row: EngineRow) -> None:
        """Each token that may be masked has the log-prob of the true one, and what is likeliest."""
        place_N = np.flatnonzero(whole_view(pair).is_teacher_masked_M)
        lacking_N = place_N[np.isnan(row.truth_logprobs_M[place_N])]
        if len(lacking_N):
            place = int(lacking_N[0])
            why = "vLLM adds it to every list" if self.format == "vllm" else "DistillKit drops it; vLLM's files have it"
            raise EngineFileError(
                f"{row.origin}: sample {pair.sample_id!r}, position {place}: found {row.depths_M[place]} ids without "
                f"{self._shown(pair.teacher_ids_M, place)}, the true one; expected its log-prob too ({why}). Import "
                "vLLM's prompt_logprobs, or answers that the teacher wrote. Nothing was written."
            )

    def require(self, pairs: Iterable[SamplePair]) -> None:
        """Check the rows of some samples; see `of`."""
        for pair in pairs:
            self.of(pair)


def _key(ids_M: Int32s) -> bytes:
    """Stand for a text by its tokens but the first, which a file need not state."""
    return hashlib.blake2b(np.ascontiguousarray(ids_M[1:], np.int32).tobytes(), digest_size=16).digest()


def _keys_of(row: EngineRow) -> list[bytes]:
    texts = [row.token_ids_M, row.token_ids_M[:-1]] if row.is_padded else [row.token_ids_M]
    return list(map(_key, texts))


def _first_difference(found_M: Int32s, expected_M: Int32s) -> int:
    """Return the first place where two texts differ; the shorter one's length where none does."""
    length = min(len(found_M), len(expected_M))
    differs_M = (found_M[:length] != expected_M[:length]) & (found_M[:length] != UNKNOWN)
    return int(differs_M.argmax()) if differs_M.any() else length
