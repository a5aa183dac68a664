"""Held-out negative log-likelihood over a grid of diffusion times: the figure by which models are compared.

Masks are drawn per token, not per chunk, from keyed random numbers: two models with the same tokenizer are asked
exactly the same questions, whatever cache or objective they come from.

Shape suffixes: B samples, L tokens, N masked rows, G times of the grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tide_cache.config.settings import Context
from tide_cache.errors import ModelError, RunFileError, fault_list
from tide_cache.evaluation.forward import length_faults, truth_rows
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.batches import plan_batches
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.records import Bools, SamplePair, StudentBatch
from tide_cache.views.random import KeyedRandom

TIMES = tuple((index + 0.5) / 10 for index in range(10))
"""Mid-points of ten equal strata of t, so that the mean over them is the mid-point rule for the integral over t."""


@dataclass(frozen=True)
class NllAtTime:
    """Figures of a model on the tokens masked at one diffusion time.

    Attributes:
        t: Probability with which each supervised token was masked.
        num_masked: Masked tokens over all samples.
        nll: Mean of -log p(true token) per masked token, in nats; None when nothing was masked.
        accuracy: Share of masked tokens whose most likely token is the true one; None when nothing was masked.
    """

    t: float
    num_masked: int
    nll: float | None
    accuracy: float | None


@dataclass(frozen=True)
class NllByRow:
    """Sums of every held-out sample, in the order given: a bootstrap over samples needs no model.

    The mean NLL at a time is the sum of `nll` over the sum of `num_masked`.

    Attributes:
        sample_id: Of each sample.
        num_supervised: Its tokens that can be masked.
        num_bytes: UTF-8 bytes that they spell; None where bytes were not counted.
        num_masked: Its masked tokens, at each t of the grid.
        nll: Their sums of -log p(true token) in nats, likewise.
    """

    sample_id: tuple[str, ...]
    num_supervised: tuple[int, ...]
    num_bytes: tuple[int, ...] | None
    num_masked: tuple[tuple[int, ...], ...]
    nll: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class NllReport:
    """Held-out NLL of one model; `dataclasses.asdict` makes it JSON-ready.

    Attributes:
        context: What the model was shown.
        seed: Mask seed.
        num_samples: Number of samples, with or without a masked token.
        num_supervised: Tokens that can be masked, over all samples, including end-of-text fill.
        times: One entry per t of the grid, in its order.
        mean_nll: Mean of `nll` over the grid. On a uniform grid it estimates the diffusion bound on -log p(x_0), in
            nats per supervised token. None if nothing was masked at some t: the other times alone are biased.
        mean_accuracy: Mean of `accuracy` over the grid; None likewise.
        nats_per_byte: `mean_nll` times supervised tokens over bytes, comparable between tokenizers; None when the
            number of bytes was not given.
        rows: Sums by sample, where they were asked for.
    """

    context: Context
    seed: int
    num_samples: int
    num_supervised: int
    times: tuple[NllAtTime, ...]
    mean_nll: float | None
    mean_accuracy: float | None
    nats_per_byte: float | None
    rows: NllByRow | None = None


def held_out_nll(
    backbone: Backbone,
    pairs: Sequence[SamplePair],
    *,
    mask_id: int,
    pad_id: int,
    block_size: int,
    times: Sequence[float] = TIMES,
    seed: int = 0,
    context: Context = "block",
    num_bytes: int | Sequence[int] | None = None,
    batch_tokens: int = 8192,
    by_row: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> NllReport:
    """Measure a model on masked views of held-out samples, one view per sample and t.

    The result depends neither on the order of the samples nor, beyond rounding, on `batch_tokens`.

    Args:
        backbone: The model; its mode is left as it was.
        pairs: Samples in the model's own tokens; the teacher's side is not used.
        mask_id: The model's mask token.
        pad_id: Pads shorter samples of a batch; hidden from attention.
        block_size: Tokens per block in the `block` context.
        times: Grid of t in (0, 1]; each supervised token is masked with probability t.
        seed: Mask seed; with the sample id and the index in the grid it determines every mask.
        context: `block` for students and block teachers, `full` for bidirectional ones.
        num_bytes: UTF-8 bytes of the text that the supervised tokens spell, for `nats_per_byte`; of all samples
            together, or of each.
        batch_tokens: Padded tokens of a forward.
        by_row: Also keep the sums of every sample.
        progress: Called after each forward with the number of views done and the number in all.

    Raises:
        RunFileError: No sample, an impossible option, or a sample above the model's limit; lists every fault.
        ModelError: An output is not finite; names the sample and t.
    """
    bytes_of_all = num_bytes if num_bytes is None or isinstance(num_bytes, int) else sum(num_bytes)
    _require_usable(backbone, pairs, block_size, times, bytes_of_all, batch_tokens)
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].student_ids_L), pairs[i].sample_id))
    ordered = [pairs[i] for i in order]
    lengths = [len(pair.student_ids_L) for pair in ordered]
    nll_BG, num_right_BG, num_masked_BG = (np.zeros((len(pairs), len(times))) for _ in range(3))
    num_done = 0
    with evaluating(backbone):
        for groups in plan_batches(lengths, [len(times)] * len(lengths), 1, int(context == "block"), batch_tokens):
            chosen = [ordered[group.sample] for group in groups]
            place_B = np.array([group.views[0] for group in groups])
            masks = [_draw_mask(pair, times[g], seed, g) for pair, g in zip(chosen, place_B.tolist(), strict=True)]
            batch = _batch(chosen, masks, mask_id, pad_id)
            rows = truth_rows(backbone, batch, block_size, context)
            view_N = batch.row_sample_N.numpy()
            at_N = np.array([group.sample for group in groups])[view_N], place_B[view_N]
            _require_finite(rows, batch, chosen, [times[g] for g in place_B])
            np.add.at(nll_BG, at_N, -rows.truth_logprobs_N.numpy().astype(np.float64))
            np.add.at(num_right_BG, at_N, rows.is_top1_N.numpy())
            np.add.at(num_masked_BG, at_N, 1)
            num_done += len(groups)
            if progress is not None:
                progress(num_done, len(ordered) * len(times))
    at_times = tuple(
        NllAtTime(float(t), int(num), float(nll / num) if num else None, float(right / num) if num else None)
        for t, num, nll, right in zip(
            times, num_masked_BG.sum(axis=0), nll_BG.sum(axis=0), num_right_BG.sum(axis=0), strict=True
        )
    )
    report = _report(at_times, ordered, context, seed, bytes_of_all)
    if not by_row:
        return report
    given = np.argsort(order)
    bytes_of_each = None if num_bytes is None or isinstance(num_bytes, int) else tuple(num_bytes)
    return replace(report, rows=_by_row(pairs, bytes_of_each, num_masked_BG[given], nll_BG[given]))


def _by_row(
    pairs: Sequence[SamplePair], num_bytes: tuple[int, ...] | None, num_masked_BG: np.ndarray, nll_BG: np.ndarray
) -> NllByRow:
    return NllByRow(
        sample_id=tuple(str(pair.sample_id) for pair in pairs),
        num_supervised=tuple(int(pair.is_supervised_L.sum()) for pair in pairs),
        num_bytes=num_bytes,
        num_masked=tuple(map(tuple, num_masked_BG.astype(int).tolist())),
        nll=tuple(map(tuple, nll_BG.tolist())),
    )


def _draw_mask(pair: SamplePair, t: float, seed: int, place: int) -> Bools:
    """Mask each supervised token with probability t; `place` is the index of t in the grid."""
    uniform_L = KeyedRandom("eval", seed, pair.sample_id, place).uniform(len(pair.student_ids_L))
    is_masked_L: Bools = (uniform_L < np.float32(t)) & pair.is_supervised_L
    return is_masked_L


def _batch(pairs: Sequence[SamplePair], masks: Sequence[Bools], mask_id: int, pad_id: int) -> StudentBatch:
    shape = (len(pairs), max(len(pair.student_ids_L) for pair in pairs))
    x_0_BL = np.full(shape, pad_id, np.int64)
    is_real_BL, is_masked_BL = np.zeros(shape, bool), np.zeros(shape, bool)
    for b, (pair, mask) in enumerate(zip(pairs, masks, strict=True)):
        x_0_BL[b, : len(mask)] = pair.student_ids_L
        is_real_BL[b, : len(mask)] = True
        is_masked_BL[b, : len(mask)] = mask
    arrays = (x_0_BL, np.where(is_masked_BL, mask_id, x_0_BL), is_real_BL, *np.nonzero(is_masked_BL))
    x_0, x_t, is_real, row_sample_N, row_position_N = (torch.from_numpy(array) for array in arrays)
    return StudentBatch(x_0, x_t, is_real, row_sample_N, row_position_N)


def _report(
    at_times: tuple[NllAtTime, ...], pairs: Sequence[SamplePair], context: Context, seed: int, num_bytes: int | None
) -> NllReport:
    num_supervised = int(sum(pair.is_supervised_L.sum() for pair in pairs))
    mean_nll = _mean([entry.nll for entry in at_times])
    return NllReport(
        context=context,
        seed=seed,
        num_samples=len(pairs),
        num_supervised=num_supervised,
        times=at_times,
        mean_nll=mean_nll,
        mean_accuracy=_mean([entry.accuracy for entry in at_times]),
        nats_per_byte=None if mean_nll is None or num_bytes is None else mean_nll * num_supervised / num_bytes,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _require_usable(
    backbone: Backbone,
    pairs: Sequence[SamplePair],
    block_size: int,
    times: Sequence[float],
    num_bytes: int | None,
    batch_tokens: int,
) -> None:
    faults = [f"{t!r} is no diffusion time; expected 0 < t <= 1" for t in times if not 0 < t <= 1]
    if not times:
        faults.append("the grid of times is empty; give at least one t in (0, 1]")
    if not pairs:
        faults.append("there is no held-out sample; give a corpus with at least one")
    for name, number in (("block_size", block_size), ("batch_tokens", batch_tokens), ("num_bytes", num_bytes)):
        if number is not None and number < 1:
            faults.append(f"{name} is {number}; expected at least 1")
    faults += length_faults(backbone, pairs)
    if faults:
        raise RunFileError(fault_list("held-out NLL cannot be measured:", faults))


def _require_finite(
    rows: RowSignals, batch: StudentBatch, pairs: Sequence[SamplePair], times_B: Sequence[float]
) -> None:
    is_finite_N = rows.truth_logprobs_N.isfinite()
    if not is_finite_N.all():
        bad = int(batch.row_sample_N[int((~is_finite_N).nonzero()[0])])
        raise ModelError(
            f"the model's output is not finite for held-out sample {pairs[bad].sample_id!r} at t = {times_B[bad]:g}; "
            "check the checkpoint, or use float32"
        )
