"""Agreement of a student with its teacher, on the views that the teacher was shown.

Shape suffixes: N masked rows, R rows with teacher candidates, C active chunks, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch

from tide_cache.errors import CacheMismatchError, RunFileError, fault_list
from tide_cache.evaluation.forward import HEAD_ROWS, length_faults
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.batches import plan_batches
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.moving import moved
from tide_cache.modeling.rows import masked_hidden
from tide_cache.objectives.base import (
    grouped_kl,
    ids_to_gather,
    student_chunk_logprobs,
    student_logprobs,
    teacher_logprobs,
)
from tide_cache.records import Bools, Float32s, RowStatistics, Targets, ViewRecord
from tide_cache.student.row_statistics import row_statistics

NUM_BUCKETS = 10


@dataclass(frozen=True)
class Agreement:
    """Agreement with the teacher on views with `t_from` <= t < `t_to`; t = 1 belongs to the last bucket.

    Attributes:
        t_from: Lower end of the bucket.
        t_to: Upper end.
        num_rows: Masked tokens that have teacher candidates.
        top1_agreement: Share of these rows where student and teacher have the same most likely token, of the ids that
            both tokenizers share; None without such rows.
        kl: Mean KL(teacher || student) over the kept ids and the rest at T = 1, in nats; None without such rows.
        num_chunks: Active chunks.
        chunk_logprob_difference: Mean of |log q - log p| of a chunk's true tokens, in nats; None without chunks.
    """

    t_from: float
    t_to: float
    num_rows: int
    top1_agreement: float | None
    kl: float | None
    num_chunks: int
    chunk_logprob_difference: float | None


@dataclass(frozen=True)
class AgreementReport:
    """Agreement over all views and by diffusion time; `dataclasses.asdict` makes it JSON-ready."""

    num_views: int
    overall: Agreement
    by_time: tuple[Agreement, ...]


@dataclass(frozen=True, eq=False)
class _Measured:
    """One entry per row with candidates, and one per active chunk."""

    t_R: Float32s
    agrees_R: Bools
    kl_R: Float32s
    t_C: Float32s
    difference_C: Float32s


def teacher_agreement(
    backbone: Backbone,
    records: Sequence[ViewRecord],
    layout: BatchLayout,
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> AgreementReport:
    """Compare a student with the teacher's signals, on the teacher's views.

    Rows with candidates exist where the tokenizers are shared and `topk` was captured; chunks exist in every cache.

    Args:
        backbone: The student; its mode is left as it was.
        records: Views with signals.
        layout: How views become batches; its temperatures are those of the cache, and include 1.
        batch_tokens: Tokens of a forward, before padding to whole blocks.
        progress: Called after each forward with the number of views done and the number in all.

    Raises:
        RunFileError: No view, or a sample above the model's limit.
        CacheMismatchError: A view has no teacher signal, or T = 1 was not captured.
    """
    _require_usable(backbone, records, layout)
    lengths = [len(record.pair.student_ids_L) for record in records]
    measured: list[_Measured] = []
    num_done = 0
    with evaluating(backbone):
        for groups in plan_batches(lengths, [1] * len(lengths), 1, 1, batch_tokens):
            measured.append(_measure(backbone, [records[group.sample] for group in groups], layout))
            num_done += len(groups)
            if progress is not None:
                progress(num_done, len(records))
    whole = _Measured(*(np.concatenate([getattr(part, f.name) for part in measured]) for f in fields(_Measured)))
    edges = [index / NUM_BUCKETS for index in range(NUM_BUCKETS + 1)]
    return AgreementReport(
        num_views=len(records),
        overall=_summary(whole, 0.0, 1.0),
        by_time=tuple(_summary(whole, low, high) for low, high in pairwise(edges)),
    )


def _measure(backbone: Backbone, records: Sequence[ViewRecord], layout: BatchLayout) -> _Measured:
    batch, targets = collate(records, layout)
    hidden_ND = masked_hidden(backbone, batch, layout.block_size, "block")
    student = _statistics(hidden_ND, backbone.head_VD, targets)
    rows_R = targets.topk.rows_R
    best_R = _most_likely(hidden_ND[moved(rows_R, hidden_ND.device)], backbone.head_VD)
    is_first_R1 = targets.topk.kept_ids_NK[rows_R, :1] == best_R[:, None]
    return _Measured(
        t_R=targets.t_N[rows_R].numpy(),
        agrees_R=is_first_R1.any(dim=1).numpy(),
        kl_R=grouped_kl(teacher_logprobs(targets, 1.0), student_logprobs(student, targets, 1.0)).numpy(),
        t_C=targets.truth.chunk_t_C.numpy(),
        difference_C=(student_chunk_logprobs(student, targets) - targets.truth.chunk_logprob_C).abs().numpy(),
    )


def _statistics(hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets: Targets) -> RowStatistics:
    """Return the student's statistics at T = 1, on the CPU."""
    ids_NK, is_kept_NK = (moved(part, hidden_ND.device) for part in ids_to_gather(targets))
    student = row_statistics(hidden_ND, head_VD, ids_NK, (1.0,), is_kept_NK, HEAD_ROWS)
    return RowStatistics(student.gathered_NK.cpu(), student.log_z_NT.cpu(), student.log_rest_NT.cpu(), (1.0,))


def _most_likely(hidden_ND: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Return the most likely id of each row, slice by slice, on the CPU."""
    best = [apply_head(rows_RD, head_VD).argmax(dim=1) for rows_RD in torch.split(hidden_ND, HEAD_ROWS)]
    return torch.cat(best).cpu()


def _summary(measured: _Measured, low: float, high: float) -> Agreement:
    is_row_R, is_chunk_C = (
        (t >= np.float32(low)) & ((t < np.float32(high)) | (high == 1)) for t in (measured.t_R, measured.t_C)
    )
    return Agreement(
        t_from=low,
        t_to=high,
        num_rows=int(is_row_R.sum()),
        top1_agreement=_mean(measured.agrees_R[is_row_R]),
        kl=_mean(measured.kl_R[is_row_R]),
        num_chunks=int(is_chunk_C.sum()),
        chunk_logprob_difference=_mean(measured.difference_C[is_chunk_C]),
    )


def _mean(values: Bools | Float32s) -> float | None:
    return float(values.mean(dtype=np.float64)) if len(values) else None


def _require_usable(backbone: Backbone, records: Sequence[ViewRecord], layout: BatchLayout) -> None:
    if not records:
        raise RunFileError("agreement cannot be measured: there is no view; give a cache with at least one sample")
    if unsignalled := [record.view.sample_id for record in records if record.signal is None]:
        raise CacheMismatchError(
            f"agreement cannot be measured: {len(unsignalled)} of {len(records)} views carry no teacher signal, first "
            f"that of sample {unsignalled[0]!r}; expected views from a cache (tide-cache build-teacher-shards)"
        )
    if 1.0 not in layout.temperatures:
        raise CacheMismatchError(
            f"agreement cannot be measured: the cache holds temperatures {list(layout.temperatures)}, expected 1.0 "
            "among them; add it to signals.temperatures and rebuild"
        )
    if faults := length_faults(backbone, [record.pair for record in records]):
        raise RunFileError(fault_list("agreement cannot be measured:", faults))
