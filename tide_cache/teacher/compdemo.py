"""The `compdemo` pass: the teacher sees two partial views in place of each view, and answers for what each masks."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from tide_cache.records import Bools, MaskedView, SamplePair, TailSamples, TeacherSignal, TopK
from tide_cache.teacher.capture import Teacher
from tide_cache.teacher.chunks import merge_chunks
from tide_cache.views import draw_shown_first, partial_views


def demo_parts(
    pairs: Sequence[SamplePair], views: Sequence[Sequence[MaskedView]], seed: int, demo_ratio: float
) -> list[list[MaskedView]]:
    """Give for each sample the partial views that the teacher is shown, those of all its views in a row.

    Args:
        pairs: The samples.
        views: For each sample its views.
        seed: Mask seed.
        demo_ratio: Probability that a masked chunk is shown in pass one.
    """
    return [list(chain(*of_sample)) for of_sample in _parts(views, _splits(pairs, views, seed, demo_ratio))]


def compdemo_signals(
    teacher: Teacher,
    pairs: Sequence[SamplePair],
    views: Sequence[Sequence[MaskedView]],
    seed: int,
    demo_ratio: float,
    on_views: Callable[[int], None] | None = None,
) -> list[list[TeacherSignal]]:
    """Give the signal of every view of every sample, each masked position from the forward in which it was masked.

    Args:
        teacher: The teacher.
        pairs: The samples.
        views: For each sample its views.
        seed: Mask seed.
        demo_ratio: Probability that a masked chunk is shown in pass one.
        on_views: As in `Teacher.signals`; counts partial views, at most two for a view.

    Raises:
        TeacherOutputError: An output is not finite; names the sample and view.
    """
    splits = _splits(pairs, views, seed, demo_ratio)
    parts = _parts(views, splits)
    answers = teacher.signals(pairs, [list(chain(*of_sample)) for of_sample in parts], on_views)
    result = []
    for pair, of_sample, of_split, of_answer in zip(pairs, parts, splits, answers, strict=True):
        left = iter(of_answer)
        result.append(
            [
                merge_signals(of_view, [next(left) for _ in of_view], is_shown_first_M, pair)
                for of_view, is_shown_first_M in zip(of_sample, of_split, strict=True)
            ]
        )
    return result


def _splits(
    pairs: Sequence[SamplePair], views: Sequence[Sequence[MaskedView]], seed: int, demo_ratio: float
) -> list[list[Bools]]:
    return [
        [draw_shown_first(pair, view, seed, demo_ratio) for view in of_sample]
        for pair, of_sample in zip(pairs, views, strict=True)
    ]


def _parts(
    views: Sequence[Sequence[MaskedView]], splits: Sequence[Sequence[Bools]]
) -> list[list[tuple[MaskedView, ...]]]:
    return [
        [
            tuple(partial_views(view, is_shown_first_M))
            for view, is_shown_first_M in zip(of_sample, of_split, strict=True)
        ]
        for of_sample, of_split in zip(views, splits, strict=True)
    ]


def merge_signals(
    parts: Sequence[MaskedView], signals: Sequence[TeacherSignal], is_shown_first_M: Bools, pair: SamplePair
) -> TeacherSignal:
    """Bring the signals of partial views into the order of positions.

    Args:
        parts: Partial views of one view; no position is masked in two of them.
        signals: Their signals.
        is_shown_first_M: The split, kept beside them.
        pair: The sample.
    """
    positions = [np.flatnonzero(part.is_teacher_masked_M) for part in parts]
    position_N = np.concatenate(positions)
    order_N = np.argsort(position_N)
    row_of_position_M = np.zeros(len(is_shown_first_M), np.int32)
    row_of_position_M[position_N[order_N]] = np.arange(len(order_N))
    rows = [row_of_position_M[of_part] for of_part in positions]
    topks = [signal.topk for signal in signals if signal.topk is not None]
    chunks = [signal.chunks for signal in signals if signal.chunks is not None]
    return TeacherSignal(
        truth_logprobs_N=np.concatenate([signal.truth_logprobs_N for signal in signals])[order_N],
        is_top1_N=np.concatenate([signal.is_top1_N for signal in signals])[order_N],
        topk=_merge_topk(topks, rows) if topks else None,
        is_shown_first_N=is_shown_first_M[position_N[order_N]],
        chunks=merge_chunks(chunks, pair.chunks_C4[:, 3] - pair.chunks_C4[:, 2]) if chunks else None,
    )


def _merge_topk(topks: Sequence[TopK], rows: Sequence[np.ndarray]) -> TopK:
    """Sort the rows of all parts; `rows` gives the new number of each masked position of each part."""
    rows_R = np.concatenate([of_part[topk.rows_R] for topk, of_part in zip(topks, rows, strict=True)])
    counts_R = np.concatenate([topk.counts_R for topk in topks])
    order_R = np.argsort(rows_R)
    order_E = np.argsort(np.repeat(rows_R, counts_R), kind="stable")
    tails = [topk.tail for topk in topks if topk.tail is not None]
    return TopK(
        rows_R=rows_R[order_R],
        counts_R=counts_R[order_R],
        ids_E=np.concatenate([topk.ids_E for topk in topks])[order_E],
        logprobs_E=np.concatenate([topk.logprobs_E for topk in topks])[order_E],
        log_tail_RT=np.concatenate([topk.log_tail_RT for topk in topks])[order_R],
        log_partition_RT=np.concatenate([topk.log_partition_RT for topk in topks])[order_R],
        tail=_merge_tails(tails, rows_R, order_R) if tails else None,
    )


def _merge_tails(tails: Sequence[TailSamples], rows_R: np.ndarray, order_R: np.ndarray) -> TailSamples:
    counts_R = np.concatenate([tail.counts_R for tail in tails])
    order_S = np.argsort(np.repeat(rows_R, counts_R), kind="stable")
    return TailSamples(
        counts_R=counts_R[order_R],
        ids_S=np.concatenate([tail.ids_S for tail in tails])[order_S],
        logprobs_S=np.concatenate([tail.logprobs_S for tail in tails])[order_S],
        draws_S=np.concatenate([tail.draws_S for tail in tails])[order_S],
    )
