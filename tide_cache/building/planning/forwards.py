"""How long the teacher takes: a few forwards of exactly the build's shape, timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from tide_cache.arrays import evenly
from tide_cache.building.budget import Budget, spread_first
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.reveal import steps_of
from tide_cache.modeling.batches import ViewGroup
from tide_cache.progress import doing
from tide_cache.records import MaskedView, SamplePair
from tide_cache.shards import PassName
from tide_cache.teacher.compdemo import demo_parts
from tide_cache.teacher.sorting import AnyTeacher

from .timing import timed

BATCHES_TIMED = 8
SHARE_TIMED = 0.25
"""Of a small build's forwards: timing all of them would cost what they cost."""

SAMPLES_DECODED, SHARE_DECODING = 16, 0.25
"""Samples whose true answers are decoded, where views are steps of that; the share of the budget left that it takes."""

Views = Sequence[Sequence[MaskedView]]


@dataclass(frozen=True)
class Timing:
    """Forwards of the build, from those that were timed."""

    seconds_per_token: float
    spread: float
    num_batches: int
    tokens_per_shard: float
    is_cut: bool


def time_forwards(
    build: PreparedBuild,
    teacher: AnyTeacher,
    pairs: Sequence[SamplePair],
    views: Views,
    kept: float,
    name: PassName,
    budget: Budget,
) -> Timing:
    """Time forwards spread over those of a full shard, which the sample repeated stands for."""
    shown = demo_parts(pairs, views, build.views.seed, build.views.demo_ratio) if name == "compdemo" else views
    num_rows = len(build.plan.rows_of(0))
    chosen = [index % len(pairs) for index in range(max(1, round(num_rows * kept)))]
    batches = build.capture.batches([len(pairs[i].teacher_ids_M) for i in chosen], [len(shown[i]) for i in chosen])
    wanted = min(BATCHES_TIMED, max(2, round(len(batches) * build.plan.num_shards * SHARE_TIMED)))
    picked = spread_first(evenly(len(batches), wanted))

    def show(batch: Sequence[ViewGroup]) -> None:
        members = [chosen[group.sample] for group in batch]
        teacher.signals(
            [pairs[i] for i in members],
            [[shown[i][v] for v in group.views] for i, group in zip(members, batch, strict=True)],
        )

    def num_tokens(batch: Sequence[ViewGroup]) -> int:
        longest = max(len(pairs[chosen[group.sample]].teacher_ids_M) for group in batch)
        return len(batch) * longest * (len(batch[0].views) + build.capture.copies)

    with doing(f"Timing forwards of the pass {name}", len(picked) + 1, "forwards") as phase:
        first_s = timed(lambda: show(batches[picked[0]]))[1]  # it also allocates and tunes
        phase.advance()
        seconds: list[float] = []
        for index in picked:
            if budget.left_s() <= 0:
                break
            seconds.append(timed(lambda batch=batches[index]: show(batch))[1])  # type: ignore[misc]
            phase.advance()
    is_cut = len(seconds) < len(picked)
    seconds = seconds or [first_s]
    tokens = [num_tokens(batches[index]) for index in picked[: len(seconds)]]
    rates = [second / token for second, token in zip(seconds, tokens, strict=True)]
    return Timing(
        seconds_per_token=sum(seconds) / sum(tokens),
        spread=stdev(rates) / mean(rates) if len(rates) > 1 else 0.0,
        num_batches=len(rates),
        tokens_per_shard=sum(map(num_tokens, batches)),
        is_cut=is_cut,
    )


def time_decoding(build: PreparedBuild, teacher: AnyTeacher, pairs: Sequence[SamplePair], budget: Budget) -> float:
    """Return the seconds in which the teacher decodes the true answer of a sample; 0 where views need no decoding.

    It is done once for all passes, for as many samples at a time as `batch_tokens` holds, and timed for samples of all
    lengths, at least for a few.
    """
    if build.views.source != "trajectory" or build.views.trajectory != "decode":
        return 0.0
    budget = budget.share(SHARE_DECODING)
    by_length = sorted(pairs, key=lambda pair: len(pair.teacher_ids_M))
    chosen = [by_length[i] for i in spread_first(evenly(len(by_length), SAMPLES_DECODED))]
    seconds, num_decoded = 0.0, 0
    with doing("Timing the decoding of true answers", len(chosen), "samples") as phase:
        while num_decoded < len(chosen) and (not num_decoded or budget.left_s() > 0):
            longest = len(chosen[num_decoded].teacher_ids_M)
            some = chosen[num_decoded : num_decoded + max(1, build.capture.batch_tokens // longest)]
            seconds += timed(lambda some=some: steps_of(build, teacher, None, some, phase.advance))[1]  # type: ignore[misc]
            num_decoded += len(some)
            phase.advance(len(some))
    return seconds / num_decoded
