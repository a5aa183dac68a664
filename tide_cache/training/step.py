"""One optimizer step: counts first, over all ranks and micro-batches, then forwards and backwards, divided once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tide_cache.modeling.moving import moved, on_device
from tide_cache.objectives import Objective, ids_to_gather, union_of_needs
from tide_cache.objectives.base import student_truth
from tide_cache.records import RowStatistics, StudentBatch, Targets
from tide_cache.training.distributed import World, sum_over_ranks
from tide_cache.training.notes import Notes

T_BUCKETS = 10


@dataclass(frozen=True, eq=False)
class StepSums:
    """Sums and counts of one step over this rank's micro-batches, one entry per objective.

    `totals_O` are detached, in nats, not weighted; `counts_O` are over all ranks. `nll_by_t_B` are sums of
    -log q(true) over the masked rows whose t lies in each of `T_BUCKETS` equal parts of (0, 1], `rows_by_t_B` their
    numbers. `notes` are the notes of all ranks, added up.
    """

    totals_O: torch.Tensor
    counts_O: torch.Tensor
    nll_by_t_B: torch.Tensor
    rows_by_t_B: torch.Tensor
    notes: Notes


def train_step(
    engine: Any,
    micro_batches: Sequence[tuple[StudentBatch, Targets]],
    objectives: Sequence[Objective],
    world: World,
    progress: float = 0.0,
    notes: Sequence[float] = (),
) -> StepSums:
    """Run forwards and backwards of a step and let the engine update.

    The loss is the sum over objectives of weight * (sum over all ranks and micro-batches) / (count over the same), so
    neither accumulation nor the number of ranks changes it. DeepSpeed averages gradients over ranks; the factor
    `world.size` undoes that.

    Args:
        engine: From `make_engine`.
        micro_batches: This rank's, equally many on each rank; all on the CPU.
        objectives: What to sum.
        world: This process.
        progress: Share of the run's steps that are taken.
        notes: Numbers to add up over the ranks, equally many on each: they share a collective with the counts.
    """
    device = engine.device
    counts = [sum(objective.count(targets) for _, targets in micro_batches) for objective in objectives]
    summed = moved(torch.tensor([*counts, *notes], dtype=torch.float64), device)
    if world.size > 1:
        summed = sum_over_ranks(summed)
    counts_O, notes_N = torch.split(summed, [len(counts), len(notes)])
    sent = Notes(notes_N)  # before the forwards: what is copied later arrives later
    weights = [objective.weight * world.size for objective in objectives]
    weight_O = moved(torch.tensor(weights, dtype=torch.float64), device)
    scale_O = (weight_O / counts_O.masked_fill(counts_O == 0, 1)).unbind()
    temperatures = tuple(sorted(union_of_needs(objective.needs for objective in objectives).student_temperatures))
    totals_O = torch.zeros(len(objectives), dtype=torch.float64, device=device)
    nll_B = torch.zeros(T_BUCKETS, dtype=torch.float64, device=device)
    rows_B = torch.zeros_like(nll_B)
    for batch, targets in micro_batches:
        here, there = on_device(batch, device), on_device(targets, device)
        gathered_NK, log_z_NT, log_rest_NT = engine(here, *ids_to_gather(there), temperatures)
        statistics = RowStatistics(gathered_NK, log_z_NT, log_rest_NT, temperatures)
        totals = [objective.total(statistics, there, progress) for objective in objectives]
        # scales stay on the device: to read them, the host would wait for all that was launched before
        loss = sum(total * scale.to(total.dtype) for total, scale in zip(totals, scale_O, strict=True))
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
        totals_O += torch.stack([total.detach() for total in totals])
        nll_N = -student_truth(statistics).detach().double()
        bucket_N = (there.t_N * T_BUCKETS).long().clamp(0, T_BUCKETS - 1)
        nll_B.index_add_(0, bucket_N, nll_N)
        rows_B.index_add_(0, bucket_N, torch.ones_like(nll_N))
    return StepSums(totals_O, counts_O, nll_B, rows_B, sent)
