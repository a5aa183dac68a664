"""One view of a cache, readable: what is masked in it, and what the teacher said of every masked chunk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Bools, ViewRecord
from tide_cache.shards import ShardLayout
from tide_cache.views.masking import active_chunks


@dataclass(frozen=True)
class MaskedChunk:
    """A masked chunk of a view, and what the teacher said of it.

    Attributes:
        student_start: First student token.
        student_end: One past the last.
        text: The student tokens, as text or as ids.
        teacher_logprob: Log-prob of the true teacher tokens, summed, in nats.
        is_top1: Whether each of them was the most likely one.
        kept_ids: Ids kept at its position; None for a chunk without candidates.
    """

    student_start: int
    student_end: int
    text: str
    teacher_logprob: float
    is_top1: bool
    kept_ids: int | None


@dataclass(frozen=True)
class ViewDescription:
    """One view, readable: `text` has every run of masked student tokens in brackets ⟦ ⟧."""

    sample_id: str
    view: int
    t: float
    num_tokens: int
    num_supervised: int
    num_masked: int
    num_teacher_tokens: int
    num_teacher_masked: int
    text: str
    chunks: tuple[MaskedChunk, ...]


def describe_view(cache: CachePath, number: int, tokenizer: str | None = None) -> ViewDescription:
    """Describe one view.

    Args:
        cache: Folder of the cache.
        number: Counts through the cache: first all views of the first sample.
        tokenizer: The student tokenizer's folder or hub name, for text; without it, ids are shown.

    Raises:
        RunFileError: There is no such view.
        CacheMismatchError: The tokenizer is another one than the cache's.
        TideCacheError: The cache is not complete, or damaged.
    """
    manifest = Manifest.load(cache)
    record = _read_view(cache, manifest, number)
    spell = _spell_ids if tokenizer is None else require_student_tokenizer(tokenizer, manifest).decode
    pair, view = record.pair, record.view
    return ViewDescription(
        sample_id=pair.sample_id,
        view=view.view,
        t=view.t,
        num_tokens=len(pair.student_ids_L),
        num_supervised=int(pair.is_supervised_L.sum()),
        num_masked=int(view.is_student_masked_L.sum()),
        num_teacher_tokens=len(pair.teacher_ids_M),
        num_teacher_masked=int(view.is_teacher_masked_M.sum()),
        text=_bracketed(pair.student_ids_L.tolist(), view.is_student_masked_L, spell),
        chunks=tuple(_masked_chunks(record, spell)),
    )


def _read_view(cache: CachePath, manifest: Manifest, number: int) -> ViewRecord:
    num_views = manifest.identity.views.num_views
    sample, view = divmod(number, num_views)
    for shard, record in enumerate(manifest.shards["pairs"]):
        if sample < record.num_samples:
            layout = ShardLayout(record.num_samples, 1)
            group = next(g for g in range(layout.num_groups) if sample in layout.samples_of(g))
            pairs = manifest.reader(cache, "pairs", shard).read_pairs(group)
            records = manifest.reader(cache, manifest.passes[0], shard).read_signals(view, group, pairs)
            return records[sample - layout.samples_of(group).start]
        sample -= record.num_samples
    last = int(manifest.totals["pairs"]["samples"]) * num_views - 1
    raise RunFileError(f"{cache}: found no view {number}; expected 0 to {last}")


def _spell_ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def require_student_tokenizer(name: str, manifest: Manifest) -> TextTokenizer:
    """Load the student tokenizer of a cache.

    Args:
        name: Folder or hub name.
        manifest: Of the cache.

    Raises:
        CacheMismatchError: It is another one than the cache's.
        PairingError: It cannot be loaded.
    """
    tokenizer = TextTokenizer.load(name)
    found, expected = tokenizer.fingerprint()["tokenizer"], manifest.identity.student_tokenizer["tokenizer"]
    if found != expected:
        raise CacheMismatchError(
            f"{name}: found a tokenizer with hash {found}, the cache's student tokenizer has {expected}.\n"
            "Give the tokenizer that the cache was built with, or leave it out to see ids."
        )
    return tokenizer


def _bracketed(ids: Sequence[int], is_masked_L: Bools, spell: Callable[[Sequence[int]], str]) -> str:
    edges = [0, *(np.flatnonzero(np.diff(is_masked_L)) + 1).tolist(), len(ids)]
    runs = [(spell(ids[start:end]), bool(is_masked_L[start])) for start, end in pairwise(edges) if end > start]
    gap = " " if spell is _spell_ids else ""
    return gap.join(f"⟦{text}⟧" if is_masked else text for text, is_masked in runs)


def _masked_chunks(record: ViewRecord, spell: Callable[[Sequence[int]], str]) -> Iterator[MaskedChunk]:
    pair, view, signal = record.pair, record.view, record.signal
    assert signal is not None, "views of a cache carry signals"
    row_of_teacher_token = np.cumsum(view.is_teacher_masked_M) - 1
    counts = (
        {}
        if signal.topk is None
        else dict(zip(signal.topk.rows_R.tolist(), signal.topk.counts_R.tolist(), strict=True))
    )
    for teacher_start, teacher_end, start, end in pair.chunks_C4[active_chunks(pair, view)].tolist():
        rows = slice(row_of_teacher_token[teacher_start], row_of_teacher_token[teacher_end - 1] + 1)
        yield MaskedChunk(
            student_start=start,
            student_end=end,
            text=spell(pair.student_ids_L[start:end].tolist()),
            teacher_logprob=float(signal.truth_logprobs_N[rows].sum()),
            is_top1=bool(signal.is_top1_N[rows].all()),
            kept_ids=counts.get(int(rows.start)),
        )
