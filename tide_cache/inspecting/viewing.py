"""A view of a cache as text: what is masked in it, and what the teacher said about every masked chunk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp

import numpy as np

from tide_cache.arrays import evenly, sums_before
from tide_cache.config.sections import BuildViewsConfig
from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Bools, SamplePair, TeacherSignal, ViewRecord
from tide_cache.shards import PassName, ShardLayout
from tide_cache.views import draw_view
from tide_cache.views.masking import active_chunks

TOP_CANDIDATES = 5
LEAST_SHOWN = 0.005
"""Candidates below this probability would be shown as 0.00."""
EXAMPLES = 3

Spell = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Candidate:
    """A text that the teacher might write in place of a chunk."""

    text: str
    logprob: float


@dataclass(frozen=True)
class MaskedChunk:
    """A masked chunk of a view, and what the teacher said about it.

    Attributes:
        student_start: First student token.
        student_end: One past the last.
        text: The student tokens, as text or as ids.
        teacher_logprob: Log-prob of the true teacher tokens, summed, in nats.
        is_top1: Whether each of them was the most likely one.
        kept_ids: Number of ids kept at its position; None for a chunk without them.
        candidates: The most likely candidate chunks, or if there are none the most likely kept ids; at most 5.
        candidate_mass: Probability of all kept ones of that kind; None if there are none.
    """

    student_start: int
    student_end: int
    text: str
    teacher_logprob: float
    is_top1: bool
    kept_ids: int | None
    candidates: tuple[Candidate, ...]
    candidate_mass: float | None


@dataclass(frozen=True)
class Segment:
    """A piece of a view's text: a masked chunk, by its place in `chunks`, or a run of other tokens, masked or not."""

    text: str
    is_masked: bool
    chunk: int | None


@dataclass(frozen=True)
class ViewDescription:
    """One view as text; `number` counts the views of the whole cache.

    `text` has every run of masked student tokens in brackets ⟦ ⟧; `segments` are the same text in pieces.
    """

    number: int
    sample_id: str
    view: int
    signal_pass: PassName
    t: float
    num_tokens: int
    num_supervised: int
    num_masked: int
    num_teacher_tokens: int
    num_teacher_masked: int
    text: str
    segments: tuple[Segment, ...]
    chunks: tuple[MaskedChunk, ...]


@dataclass(frozen=True)
class _Spelling:
    """Turns ids into text by the `student` and `teacher` tokenizers, if they are given."""

    student: Spell
    teacher: Spell
    gap: str


def describe_view(
    cache: CachePath,
    number: int,
    tokenizer: str | None = None,
    teacher_tokenizer: str | None = None,
    signal_pass: PassName | None = None,
) -> ViewDescription:
    """Return one view as text; see `describe_views`."""
    return describe_views(cache, [number], tokenizer, teacher_tokenizer, signal_pass)[0]


def describe_views(
    cache: CachePath,
    numbers: Sequence[int],
    tokenizer: str | None = None,
    teacher_tokenizer: str | None = None,
    signal_pass: PassName | None = None,
) -> tuple[ViewDescription, ...]:
    """Return some views as text.

    Args:
        cache: Folder of the cache.
        numbers: Numbers of the views in the cache: first all views of the first sample.
        tokenizer: The student tokenizer's folder or hub name, for text; without it, ids are shown.
        teacher_tokenizer: The teacher's, for kept ids that mean something else to the student; without it they are
            shown as ids.
        signal_pass: Which pass; by default the first that the cache has.

    Raises:
        RunFileError: There is no such view or pass.
        CacheMismatchError: A tokenizer is not the cache's.
        TideCacheError: The cache is incomplete or damaged.
    """
    manifest = Manifest.load(cache)
    which = signal_pass or manifest.passes[0]
    if which not in manifest.passes:
        raise RunFileError(f"{cache}: found no pass {which!r}; expected one of {', '.join(manifest.passes)}")
    spelling = _spelling(manifest, tokenizer, teacher_tokenizer)
    unit_temperature = manifest.identity.signals.temperatures.index(1.0)
    records = [_read_view(cache, manifest, which, number) for number in numbers]
    return tuple(
        _description(number, which, record, spelling, unit_temperature)
        for number, record in zip(numbers, records, strict=True)
    )


def _description(
    number: int, which: PassName, record: ViewRecord, spelling: _Spelling, unit_temperature: int
) -> ViewDescription:
    pair, view = record.pair, record.view
    return ViewDescription(
        number=number,
        sample_id=pair.sample_id,
        view=view.view,
        signal_pass=which,
        t=view.t,
        num_tokens=len(pair.student_ids_L),
        num_supervised=int(pair.is_supervised_L.sum()),
        num_masked=int(view.is_student_masked_L.sum()),
        num_teacher_tokens=len(pair.teacher_ids_M),
        num_teacher_masked=int(view.is_teacher_masked_M.sum()),
        text=_bracketed(pair.student_ids_L.tolist(), view.is_student_masked_L, spelling),
        segments=tuple(_segments(record, spelling)),
        chunks=tuple(_masked_chunks(record, spelling, unit_temperature)),
    )


def worth_showing(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates without those of almost no probability; the first one stays."""
    return (*candidates[:1], *(c for c in candidates[1:] if exp(c.logprob) >= LEAST_SHOWN))


def example_views(cache: CachePath) -> tuple[int, ...]:
    """Return the numbers of up to three views of one sample, at low, middle and high t, in that order.

    The sample is the one of median length among the cache's first 64.

    Args:
        cache: Folder of a complete cache.
    """
    manifest = Manifest.load(cache)
    shards = [shard for shard, count in enumerate(manifest.num_samples) if count]
    if not shards:
        return ()
    pairs = manifest.reader(cache, "pairs", shards[0]).read_pairs(0)
    sample = sorted(range(len(pairs)), key=lambda index: len(pairs[index].student_ids_L))[len(pairs) // 2]
    num_views, config = manifest.identity.stored_views, BuildViewsConfig(**dict(manifest.identity.views))
    ordered = sorted(range(num_views), key=lambda view: draw_view(pairs[sample], view, config).t)
    return tuple(sample * num_views + ordered[index] for index in evenly(len(ordered), EXAMPLES))


def require_student_tokenizer(name: str, manifest: Manifest) -> TextTokenizer:
    """Load the student tokenizer of a cache.

    Args:
        name: Folder or hub name.
        manifest: The cache's manifest.

    Raises:
        CacheMismatchError: It is not the cache's.
        PairingError: It cannot be loaded.
    """
    return _require_tokenizer(name, "student", manifest.identity.student_tokenizer)


def _require_tokenizer(name: str, side: str, identity: dict[str, str]) -> TextTokenizer:
    tokenizer = TextTokenizer.load(name)
    found, expected = tokenizer.fingerprint()["tokenizer"], identity["tokenizer"]
    if found != expected:
        raise CacheMismatchError(
            f"{name}: found a tokenizer with hash {found}, the cache's {side} tokenizer has {expected}.\n"
            "Give the tokenizer that the cache was built with, or leave it out to see ids."
        )
    return tokenizer


def _spelling(manifest: Manifest, tokenizer: str | None, teacher_tokenizer: str | None) -> _Spelling:
    identity = manifest.identity
    student = None if tokenizer is None else require_student_tokenizer(tokenizer, manifest)
    teacher = None
    if teacher_tokenizer is not None:
        teacher = _require_tokenizer(teacher_tokenizer, "teacher", identity.teacher_tokenizer)
    elif student is not None and identity.teacher_tokenizer["tokenizer"] == identity.student_tokenizer["tokenizer"]:
        teacher = student
    shared = identity.pairing.shared_vocab_size

    def spell_teacher(ids: Sequence[int]) -> str:
        if teacher is not None:
            return teacher.decode(ids)
        if student is not None and max(ids, default=0) < shared:
            return student.decode(ids)
        return "".join(f"#{i}" for i in ids)

    if student is None:
        return _Spelling(_spell_ids, spell_teacher if teacher else _spell_ids, " ")
    return _Spelling(student.decode, spell_teacher, "")


def _spell_ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _read_view(cache: CachePath, manifest: Manifest, which: PassName, number: int) -> ViewRecord:
    num_views = manifest.identity.stored_views
    sample, view = divmod(number, num_views)
    for shard, count in enumerate(manifest.num_samples):
        if sample < count:
            layout = ShardLayout(count, 1)
            group = next(g for g in range(layout.num_groups) if sample in layout.samples_of(g))
            pairs = manifest.reader(cache, "pairs", shard).read_pairs(group)
            records = manifest.reader(cache, which, shard).read_signals(view, group, pairs)
            return records[sample - layout.samples_of(group).start]
        sample -= count
    last = int(manifest.totals["pairs"]["samples"]) * num_views - 1
    raise RunFileError(f"{cache}: found no view {number}; expected 0 to {last}")


def _bracketed(ids: Sequence[int], is_masked_L: Bools, spelling: _Spelling) -> str:
    edges = [0, *(np.flatnonzero(np.diff(is_masked_L)) + 1).tolist(), len(ids)]
    runs = [(spelling.student(ids[a:b]), bool(is_masked_L[a])) for a, b in pairwise(edges) if b > a]
    return spelling.gap.join(f"⟦{text}⟧" if is_masked else text for text, is_masked in runs)


def _segments(record: ViewRecord, spelling: _Spelling) -> Iterator[Segment]:
    """Yield the student's tokens in pieces, cut where a mask or a masked chunk begins or ends."""
    ids_L, is_masked_L = record.pair.student_ids_L, record.view.is_student_masked_L
    chunk_L = np.full(len(ids_L), -1)
    for index, (_, _, start, end) in enumerate(_active_spans(record)):
        chunk_L[start:end] = index
    is_edge_L = (np.diff(is_masked_L) != 0) | (np.diff(chunk_L) != 0)
    for start, end in pairwise([0, *(np.flatnonzero(is_edge_L) + 1).tolist(), len(ids_L)]):
        chunk = int(chunk_L[start])
        text = spelling.student(ids_L[start:end].tolist())
        yield Segment(text, bool(is_masked_L[start]), None if chunk < 0 else chunk)


def _active_spans(record: ViewRecord) -> list[list[int]]:
    spans: list[list[int]] = record.pair.chunks_C4[active_chunks(record.pair, record.view)].tolist()
    return spans


def _masked_chunks(record: ViewRecord, spelling: _Spelling, unit_temperature: int) -> Iterator[MaskedChunk]:
    pair, view, signal = record.pair, record.view, record.signal
    assert signal is not None, "views of a cache carry signals"
    row_of_teacher_token = sums_before(view.is_teacher_masked_M)
    of_chunk = _chunk_candidates(pair, signal, spelling, unit_temperature)
    of_row = _kept_ids(signal, spelling, unit_temperature)
    active = np.flatnonzero(active_chunks(pair, view)).tolist()
    for chunk, (teacher_start, teacher_end, start, end) in zip(active, _active_spans(record), strict=True):
        rows = slice(row_of_teacher_token[teacher_start], row_of_teacher_token[teacher_end - 1] + 1)
        kept = of_row.get(int(rows.start))
        candidates, mass, _ = of_chunk.get(chunk) or kept or ((), None, 0)
        yield MaskedChunk(
            student_start=start,
            student_end=end,
            text=spelling.student(pair.student_ids_L[start:end].tolist()),
            teacher_logprob=float(signal.truth_logprobs_N[rows].sum()),
            is_top1=bool(signal.is_top1_N[rows].all()),
            kept_ids=kept[2] if kept else None,
            candidates=candidates,
            candidate_mass=mass,
        )


Kept = tuple[tuple[Candidate, ...], float, int]
"""The most likely candidates, the probability of all, and how many there are."""


def _kept_ids(signal: TeacherSignal, spelling: _Spelling, unit_temperature: int) -> dict[int, Kept]:
    """Return the kept ids of each masked teacher position that has any."""
    if (topk := signal.topk) is None:
        return {}
    found: dict[int, Kept] = {}
    ends = np.cumsum(topk.counts_R).tolist()
    for row, count, end, tail in zip(
        topk.rows_R.tolist(), topk.counts_R.tolist(), ends, topk.log_tail_RT[:, unit_temperature].tolist(), strict=True
    ):
        first = range(end - count, min(end, end - count + TOP_CANDIDATES))
        texts = [spelling.teacher([int(topk.ids_E[entry])]) for entry in first]
        found[row] = _candidates(texts, [float(topk.logprobs_E[entry]) for entry in first]), 1 - exp(tail), count
    return found


def _chunk_candidates(
    pair: SamplePair, signal: TeacherSignal, spelling: _Spelling, unit_temperature: int
) -> dict[int, Kept]:
    """Return the candidates of each chunk that has any."""
    if (chunks := signal.chunks) is None:
        return {}
    found: dict[int, Kept] = {}
    entry = token = 0
    for chunk, count, tail in zip(
        chunks.chunks_A.tolist(),
        chunks.counts_A.tolist(),
        chunks.log_tail_AT[:, unit_temperature].tolist(),
        strict=True,
    ):
        width = int(pair.chunks_C4[chunk, 3] - pair.chunks_C4[chunk, 2])
        starts = range(token, token + width * min(count, TOP_CANDIDATES), width)
        texts = [spelling.student(chunks.ids_F[start : start + width].tolist()) for start in starts]
        if count:
            found[chunk] = (
                _candidates(texts, chunks.logprobs_J[entry : entry + count].tolist()),
                1 - exp(tail),
                count,
            )
        entry, token = entry + count, token + width * count
    return found


def _candidates(texts: Sequence[str], logprobs: Sequence[float]) -> tuple[Candidate, ...]:
    return tuple(Candidate(text, logprob) for text, logprob in zip(texts, logprobs, strict=False))
