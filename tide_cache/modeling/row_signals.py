"""What is kept of a model's distribution at each masked row: truth, top-k, and the exact rest.

The head runs on masked rows only, in slices, in float32: the [B, L, V] tensor never exists.

Shape suffixes: N masked rows, R rows of a slice that want candidates, V vocabulary, K top_k, T temperatures,
D draws from the tail, W ids of the student plus one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.moving import moved


@dataclass(frozen=True, eq=False)
class RowSignals:
    """Signals of many rows, padded to K; on the CPU.

    Attributes:
        truth_logprobs_N: log p(true), float32.
        is_top1_N: Whether the true id is the most likely one.
        counts_N: Number of ids kept of each row, 0 if none are wanted, int64.
        ids_NK: Ids, most likely first; those from `counts_N` on are meaningless.
        logprobs_NK: Their log-probs at T = 1.
        log_tail_NT: log of the rest's sum of p^(1/T).
        log_partition_NT: log of the whole sum of p^(1/T).
        tail_ids_ND: Ids drawn from the rest, in proportion to p; -1 if there is no rest or none are wanted.
        tail_logprobs_ND: Their log-probs at T = 1; 0 there.
    """

    truth_logprobs_N: torch.Tensor
    is_top1_N: torch.Tensor
    counts_N: torch.Tensor
    ids_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    log_tail_NT: torch.Tensor
    log_partition_NT: torch.Tensor
    tail_ids_ND: torch.Tensor
    tail_logprobs_ND: torch.Tensor


@dataclass(frozen=True, eq=False)
class Projection:
    """The ids of another vocabulary for a model's ids; several may map to the same one.

    Attributes:
        to_V: For each id of the model, an id of the other vocabulary, int64; `num_ids` if there is none.
        num_ids: Number of ids of the other vocabulary.
        true_N: The model's id under each mask: it maps to the row's true id, whatever `to_V` says.
    """

    to_V: torch.Tensor
    num_ids: int
    true_N: torch.Tensor

    def of(self, rows: slice) -> "Projection":
        """Return the projection for some of the rows."""
        return replace(self, true_N=self.true_N[rows])

    def logprobs(self, logits_NV: torch.Tensor, true_ids_N: torch.Tensor) -> torch.Tensor:
        """Return logs of summed probabilities by id of the other vocabulary [N, W]; the last is of texts without an id.

        Args:
            logits_NV: The model's logits.
            true_ids_N: True ids in the other vocabulary.
        """
        probs_NV = logits_NV.softmax(dim=1)
        of_true_N1 = probs_NV.gather(1, self.true_N[:, None])
        probs_NV.scatter_(1, self.true_N[:, None], 0)
        sums_WN = probs_NV.new_zeros((self.num_ids + 1, len(probs_NV)))
        sums_WN.index_add_(0, self.to_V, probs_NV.T.contiguous())
        return sums_WN.T.contiguous().scatter_add_(1, true_ids_N[:, None], of_true_N1).log_()


def row_signals(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    true_ids_N: torch.Tensor,
    mass_N: torch.Tensor,
    signals: SignalsConfig,
    slice_rows: int,
    uniform_ND: torch.Tensor | None = None,
    projection: Projection | None = None,
) -> RowSignals:
    """Apply the head and keep what `signals` asks for.

    Args:
        hidden_ND: Final hidden states of the masked rows, any float dtype.
        head_VD: Output weight, same dtype.
        true_ids_N: Teacher token under each mask.
        mass_N: Mass that the kept ids of each row must reach, float32: 0 if none are wanted, 1 to keep `top_k`. On the
            CPU.
        signals: What to keep.
        slice_rows: Rows whose logits exist at a time.
        uniform_ND: Numbers in [0, 1) that choose D ids drawn from the rest of each row; none by default.
        projection: Maps to another vocabulary, that of all ids then, including the true ones; by default none.
    """
    return start_row_signals(hidden_ND, head_VD, true_ids_N, mass_N, signals, slice_rows, uniform_ND, projection)()


def start_row_signals(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    true_ids_N: torch.Tensor,
    mass_N: torch.Tensor,
    signals: SignalsConfig,
    slice_rows: int,
    uniform_ND: torch.Tensor | None = None,
    projection: Projection | None = None,
) -> Callable[[], RowSignals]:
    """Start what `row_signals` does, without waiting for a GPU; calling the result waits."""
    if uniform_ND is None:
        uniform_ND = hidden_ND.new_zeros((len(hidden_ND), 0), dtype=torch.float32)
    mass_here_N = moved(mass_N, hidden_ND.device)
    inputs = _Inputs(true_ids_N, mass_here_N, uniform_ND, _wanted(mass_N, uniform_ND), projection)
    slices = [
        part
        for rows in _slices(0, len(hidden_ND), slice_rows)
        for part in _parts(hidden_ND[rows], head_VD, rows, inputs, signals)
    ]
    # tensors of a GPU are copied to pinned memory without waiting; it is filled when the event has happened
    rows = RowSignals(*(torch.cat(parts).to("cpu", non_blocking=True) for parts in zip(*slices, strict=True)))
    if not hidden_ND.is_cuda:
        return lambda: rows
    arrived = torch.cuda.current_stream(hidden_ND.device).record_event()

    def wait() -> RowSignals:
        arrived.synchronize()
        return rows

    return wait


_CACHED_LOGITS = 1 << 20
"""Logits that are processed at a time on a CPU: 4 MiB, which stay in its caches from one step to the next."""


def _slices(start: int, stop: int, size: int) -> list[slice]:
    """Return slices of rows; one empty slice if there are no rows."""
    return [slice(first, min(first + size, stop)) for first in range(start, max(stop, start + 1), size)]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Numbers of rows that draw from their tails, increasing: on the host, which cuts them, and on the device."""

    on_host_R: torch.Tensor
    rows_R: torch.Tensor

    def within(self, rows: slice) -> torch.Tensor:
        """Return those of some rows, counted from the first of these."""
        start, stop = torch.searchsorted(self.on_host_R, torch.tensor([rows.start, rows.stop])).tolist()
        within_R: torch.Tensor = self.rows_R[start:stop] - rows.start
        return within_R


def _wanted(mass_N: torch.Tensor, uniform_ND: torch.Tensor) -> _Wanted | None:
    """Find on the host which rows draw; on a GPU the host would have to wait."""
    if not uniform_ND.shape[1]:
        return None
    on_host_R = (mass_N > 0).nonzero().squeeze(1)
    return _Wanted(on_host_R, moved(on_host_R, uniform_ND.device))


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The inputs for all rows, except their hidden states."""

    true_ids_N: torch.Tensor
    mass_N: torch.Tensor
    uniform_ND: torch.Tensor
    drawing: _Wanted | None
    projection: Projection | None


def _parts(
    hidden_RD: torch.Tensor, head_VD: torch.Tensor, rows: slice, inputs: _Inputs, signals: SignalsConfig
) -> list[tuple[torch.Tensor, ...]]:
    """Apply the head to a slice of rows, and keep what is wanted: all rows at once on a GPU, a few on a CPU."""
    logits_RV = apply_head(hidden_RD, head_VD)
    size = len(logits_RV) if logits_RV.is_cuda else _CACHED_LOGITS // logits_RV.shape[1]

    def in_vocabulary(part: slice) -> torch.Tensor:
        logits_NV = logits_RV[part.start - rows.start : part.stop - rows.start]
        projection = inputs.projection
        return projection.of(part).logprobs(logits_NV, inputs.true_ids_N[part]) if projection else logits_NV

    return [
        _statistics(in_vocabulary(part), part, inputs, signals) for part in _slices(rows.start, rows.stop, max(size, 1))
    ]


def _statistics(
    logits_NV: torch.Tensor, rows: slice, inputs: _Inputs, signals: SignalsConfig
) -> tuple[torch.Tensor, ...]:
    """Return what `signals` asks for of some rows.

    There is one pass over the vocabulary for the largest logits, and one for each T over all others. Everything else
    follows from these few numbers: which ids are kept, and what remains.
    """
    top_k = min(signals.ids_per_row, logits_NV.shape[1])
    true_logit_N = logits_NV.gather(1, inputs.true_ids_N[rows, None]).squeeze(1)
    # one id more than can be kept: the largest of the others, relative to which these are summed
    top_NK, ids_NK = largest(logits_NV, min(top_k + 1, logits_NV.shape[1]))
    is_top1_N = true_logit_N >= top_NK[:, 0]
    log_others_NT = _log_others(logits_NV, top_NK, ids_NK[:, :top_k], (1.0, *signals.temperatures))
    top_NK, ids_NK = top_NK[:, :top_k], ids_NK[:, :top_k]
    log_z_N = torch.cat([top_NK, log_others_NT[:, :1]], dim=1).logsumexp(dim=1)
    truth_N = true_logit_N - log_z_N
    logprobs_NK = top_NK - log_z_N[:, None]
    counts_N = kept_counts(logprobs_NK, inputs.mass_N[rows])
    is_kept_NK = torch.arange(top_k, device=counts_N.device) < counts_N[:, None]
    log_tail_NT, log_partition_NT = (logits_NV.new_zeros((len(logits_NV), len(signals.temperatures))) for _ in range(2))
    for index, temperature in enumerate(signals.temperatures if top_k else ()):
        scaled_NK, others_N1 = top_NK / temperature, log_others_NT[:, index + 1 : index + 2]
        left_NK = torch.cat([scaled_NK.masked_fill(is_kept_NK, -torch.inf), others_N1], dim=1)
        log_tail_NT[:, index] = left_NK.logsumexp(dim=1) - log_z_N / temperature
        if temperature != 1:
            whole_N = torch.cat([scaled_NK, others_N1], dim=1).logsumexp(dim=1)
            log_partition_NT[:, index] = whole_N - log_z_N / temperature
    is_wanted_N1 = counts_N[:, None] > 0
    of_rest_NT = (torch.where(is_wanted_N1, x_NT, 0) for x_NT in (log_tail_NT, log_partition_NT))
    uniform_ND, drawing = inputs.uniform_ND[rows], inputs.drawing
    rows_R = None if drawing is None or not top_k else drawing.within(rows)
    drawn = _draw(logits_NV, ids_NK, is_kept_NK, log_z_N, uniform_ND, rows_R)
    return truth_N, is_top1_N, counts_N, ids_NK, logprobs_NK, *of_rest_NT, *drawn


def largest(values_NV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest values of each row, largest first, and their places; any of equal ones.

    They are in the `count` segments with the largest maxima: a value outside these is below as many others. Sorting
    among these alone is several times faster for a vocabulary than among all.

    Args:
        values_NV: Any floats; NaN counts as the largest.
        count: At most V.
    """
    num_rows, vocab = values_NV.shape
    whole = vocab // _SEGMENT * _SEGMENT
    if whole // _SEGMENT <= 2 * count:
        return values_NV.topk(count, dim=1)
    segments_NGS = values_NV[:, :whole].view(num_rows, whole // _SEGMENT, _SEGMENT)  # -1 is unknown without rows
    best_NG = segments_NGS.amax(dim=2).topk(count, dim=1).indices
    near_NS = segments_NGS.gather(1, best_NG[:, :, None].expand(-1, -1, _SEGMENT)).flatten(1)
    top_NK, at_NK = torch.cat([near_NS, values_NV[:, whole:]], dim=1).topk(count, dim=1)
    in_segment_NK = at_NK.clamp_max(near_NS.shape[1] - 1)
    id_NK = best_NG.gather(1, in_segment_NK // _SEGMENT) * _SEGMENT + in_segment_NK % _SEGMENT
    return top_NK, torch.where(at_NK < near_NS.shape[1], id_NK, at_NK - near_NS.shape[1] + whole)


_SEGMENT = 128
"""The size, of 32 to 512, at which the maxima and the sorting in the best segments take the least time together."""


def _log_others(
    logits_NV: torch.Tensor, top_NK: torch.Tensor, hidden_ids_NK: torch.Tensor, temperatures: tuple[float, ...]
) -> torch.Tensor:
    """Return log sum exp(logits / T) over all ids except the hidden ones, [N, T]; -inf if there are no others.

    Args:
        logits_NV: Not changed.
        top_NK: The largest logits; the first one after the hidden ids is the largest of the others.
        hidden_ids_NK: Ids to leave out.
        temperatures: The first is 1.
    """
    num_hidden = hidden_ids_NK.shape[1]
    if num_hidden == top_NK.shape[1]:
        return logits_NV.new_full((len(logits_NV), len(temperatures)), -torch.inf)
    largest_N1 = top_NK[:, num_hidden : num_hidden + 1]
    shift_N1 = torch.where(largest_N1 > -torch.inf, largest_N1, 0)

    scratch_NV = torch.empty_like(logits_NV)  # one buffer for all: fresh memory costs as much as the computation in it

    def powers(temperature: float) -> torch.Tensor:
        """Return exp(logit / T) of the others, the largest one 1; hidden ones overflow before they are taken away."""
        torch.sub(logits_NV, shift_N1, out=scratch_NV)
        if temperature != 1:
            scratch_NV.div_(temperature)
        return scratch_NV.exp_().scatter_(1, hidden_ids_NK, 0)

    sums = {1.0: powers(1.0).sum(dim=1)}
    if 2.0 in temperatures:  # what underflows at T = 1 is below e^-43 here
        sums[2.0] = scratch_NV.sqrt_().sum(dim=1)
    for temperature in set(temperatures) - {1.0, 2.0}:
        sums[temperature] = powers(temperature).sum(dim=1)
    shifts_NT = torch.cat([shift_N1 / temperature for temperature in temperatures], dim=1)
    return torch.stack([sums[temperature] for temperature in temperatures], dim=1).log() + shifts_NT


def kept_counts(logprobs_NK: torch.Tensor, mass_N: torch.Tensor) -> torch.Tensor:
    """Return the fewest ids of each row that reach its mass, 0 where none are wanted."""
    is_short_NK = (logprobs_NK.exp().cumsum(dim=1) < mass_N[:, None]) | (mass_N[:, None] >= 1)
    counts_N = (is_short_NK.sum(dim=1) + 1).clamp_max(logprobs_NK.shape[1])
    return torch.where(mass_N > 0, counts_N, 0)


def _draw(
    logits_NV: torch.Tensor,
    ids_NK: torch.Tensor,
    is_kept_NK: torch.Tensor,
    log_z_N: torch.Tensor,
    uniform_ND: torch.Tensor,
    every_row: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ids from the rest of some rows, with replacement, in proportion to p."""
    ids_ND = torch.full(uniform_ND.shape, -1, dtype=torch.int64, device=logits_NV.device)
    logprobs_ND = logits_NV.new_zeros(uniform_ND.shape)
    if every_row is None:
        return ids_ND, logprobs_ND
    for start in range(0, len(every_row), _DRAW_ROWS):
        rows = every_row[start : start + _DRAW_ROWS]
        logprobs_RV = logits_NV[rows] - log_z_N[rows, None]
        # float64: a float32 running sum over a vocabulary would lose the small values in the tail
        mass_RV = logprobs_RV.double().exp()
        kept_RK = mass_RV.gather(1, ids_NK[rows]).masked_fill(is_kept_NK[rows], 0)
        reached_RV = mass_RV.scatter_(1, ids_NK[rows], kept_RK).cumsum(dim=1)
        total_R1 = reached_RV[:, -1:]
        drawn_RD = torch.searchsorted(reached_RV, uniform_ND[rows].double() * total_R1, right=True)
        drawn_RD = drawn_RD.clamp_max(logits_NV.shape[1] - 1)
        ids_ND[rows] = torch.where(total_R1 > 0, drawn_RD, -1)
        logprobs_ND[rows] = torch.where(total_R1 > 0, logprobs_RV.gather(1, drawn_RD), 0)
    return ids_ND, logprobs_ND


_DRAW_ROWS = 64
"""Rows whose running sums exist at a time, in float64."""
