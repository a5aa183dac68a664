"""From masked views to teacher signals: pack, forward, head on masked rows, and sort the rows back to their views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tide_cache.errors import TeacherOutputError
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.packing import PackedInput, pack_block, pack_full
from tide_cache.records import MaskedView, SamplePair, TeacherSignal, TopK
from tide_cache.teacher.batches import plan_batches
from tide_cache.teacher.statistics import RowSignals, SignalPlan, row_signals


@dataclass(frozen=True)
class CapturePlan:
    """How the teacher is run; the fields are those of the run file.

    Attributes:
        context: `full` (x_t alone, bidirectional) or `block` ([x_t, x_0] under the block mask).
        block_size: Tokens per block.
        mask_id: The teacher's mask token.
        shared_vocab_size: Ids below it mean the same for teacher and student.
        views_per_forward: Views packed on one clean copy in the block context.
        batch_tokens: Padded tokens of a forward.
        head_rows: Rows of a slice of the head.
        signals: What to keep.
    """

    context: Literal["full", "block"]
    block_size: int
    mask_id: int
    shared_vocab_size: int
    views_per_forward: int
    batch_tokens: int
    head_rows: int
    signals: SignalPlan


class Teacher:
    """A denoiser that says what it thinks of masked views."""

    def __init__(self, backbone: Backbone, plan: CapturePlan):
        self._backbone = backbone.eval()
        self._plan = plan

    @torch.no_grad()
    def signals(
        self,
        pairs: Sequence[SamplePair],
        views: Sequence[Sequence[MaskedView]],
        on_views: Callable[[int], None] | None = None,
    ) -> list[list[TeacherSignal]]:
        """Give the signal of every view of every sample.

        Args:
            pairs: The samples.
            views: For each sample its views.
            on_views: Called after every forward with the number of views it served; may raise to stop.

        Raises:
            TeacherOutputError: An output is not finite; names the sample and view.
        """
        result: list[list[TeacherSignal | None]] = [[None] * len(of_sample) for of_sample in views]
        is_block = self._plan.context == "block"
        batches = plan_batches(
            lengths=[len(pair.teacher_ids_M) for pair in pairs],
            num_views=[len(of_sample) for of_sample in views],
            views_per_forward=self._plan.views_per_forward if is_block else 1,
            copies=int(is_block),
            batch_tokens=self._plan.batch_tokens,
        )
        for batch in batches:
            chosen = [(pairs[group.sample], [views[group.sample][v] for v in group.views]) for group in batch]
            for group, signals in zip(batch, self._batch_signals(chosen), strict=True):
                for view, signal in zip(group.views, signals, strict=True):
                    result[group.sample][view] = signal
            if on_views is not None:
                on_views(sum(len(group.views) for group in batch))
        return [[_present(signal) for signal in of_sample] for of_sample in result]

    def _batch_signals(self, batch: Sequence[tuple[SamplePair, list[MaskedView]]]) -> list[list[TeacherSignal]]:
        """Run one forward; every sample of the batch has equally many views."""
        device = self._backbone.device
        length = max(1, *(len(pair.teacher_ids_M) for pair, _ in batch))  # attention refuses length 0
        num_views = len(batch[0][1])
        x_0_BL = np.zeros((len(batch), length), np.int64)
        is_real_BL = np.zeros((len(batch), length), bool)
        is_masked_BnL = np.zeros((len(batch), num_views, length), bool)
        for b, (pair, views) in enumerate(batch):
            x_0_BL[b, : len(pair.teacher_ids_M)] = pair.teacher_ids_M
            is_real_BL[b, : len(pair.teacher_ids_M)] = True
            for n, view in enumerate(views):
                is_masked_BnL[b, n, : len(pair.teacher_ids_M)] = view.is_teacher_masked_M
        x_t_BnL = np.where(is_masked_BnL, self._plan.mask_id, x_0_BL[:, None])
        packed = self._pack(*(torch.from_numpy(array).to(device) for array in (x_t_BnL, x_0_BL, is_real_BL)))
        hidden_BSD = self._backbone(packed)[:, : num_views * length]
        sample_N, view_N, position_N = np.nonzero(is_masked_BnL)
        rows_N = torch.from_numpy(view_N * length + position_N).to(device)
        true_N = x_0_BL[sample_N, position_N]
        wants_topk_N = self._wants_topk([pair for pair, _ in batch], length)[sample_N, position_N]
        rows = row_signals(
            hidden_BSD[torch.from_numpy(sample_N).to(device), rows_N],
            self._backbone.head_VD,
            torch.from_numpy(true_N).to(device),
            torch.from_numpy(wants_topk_N).to(device),
            self._plan.signals,
            self._plan.head_rows,
        )
        _require_finite(rows, [batch[b][1][v] for b, v in zip(sample_N.tolist(), view_N.tolist(), strict=True)])
        return self._split(rows, is_masked_BnL)

    def _pack(self, x_t_BnL: torch.Tensor, x_0_BL: torch.Tensor, is_real_BL: torch.Tensor) -> PackedInput:
        if self._plan.context == "block":
            return pack_block(x_t_BnL, x_0_BL, is_real_BL, self._plan.block_size)
        return pack_full(x_t_BnL[:, 0], is_real_BL)

    def _wants_topk(self, pairs: Sequence[SamplePair], length: int) -> np.ndarray:
        """Mark teacher positions of aligned pairs, [B, L]; one that carries no loss is never masked."""
        wants_BL = np.zeros((len(pairs), length), bool)
        for b, pair in enumerate(pairs):
            wants_BL[b, pair.chunks_C4[pair.is_aligned_pair_C(self._plan.shared_vocab_size), 0]] = True
        return wants_BL

    def _split(self, rows: RowSignals, is_masked_BnL: np.ndarray) -> list[list[TeacherSignal]]:
        """Cut rows in (sample, view, position) order into one signal per view."""
        ends = is_masked_BnL.sum(axis=2).ravel().cumsum()
        starts = np.concatenate([[0], ends[:-1]])
        signals = [self._signal(rows, slice(start, end)) for start, end in zip(starts, ends, strict=True)]
        num_views = is_masked_BnL.shape[1]
        return [signals[b * num_views : (b + 1) * num_views] for b in range(is_masked_BnL.shape[0])]

    def _signal(self, rows: RowSignals, span: slice) -> TeacherSignal:
        topk = None
        if self._plan.signals.top_k:
            counts_N = rows.counts_N[span]
            is_stored_N = counts_N > 0
            is_kept_RK = torch.arange(rows.ids_NK.shape[1]) < counts_N[is_stored_N, None]
            topk = TopK(
                rows_R=is_stored_N.nonzero().squeeze(1).numpy().astype(np.int32),
                counts_R=counts_N[is_stored_N].numpy().astype(np.int32),
                ids_E=rows.ids_NK[span][is_stored_N][is_kept_RK].numpy().astype(np.uint32),
                logprobs_E=rows.logprobs_NK[span][is_stored_N][is_kept_RK].numpy(),
                log_tail_RT=rows.log_tail_NT[span][is_stored_N].numpy(),
                log_partition_RT=rows.log_partition_NT[span][is_stored_N].numpy(),
            )
        return TeacherSignal(rows.truth_logprobs_N[span].numpy(), rows.is_top1_N[span].numpy(), topk)


def _require_finite(rows: RowSignals, views: Sequence[MaskedView]) -> None:
    is_finite_N = rows.truth_logprobs_N.isfinite() & ~rows.log_partition_NT.isnan().any(dim=1)
    if not is_finite_N.all():
        bad = views[int((~is_finite_N).nonzero()[0])]
        raise TeacherOutputError(
            f"the teacher's output is not finite for sample {bad.sample_id!r}, view {bad.view}; nothing of this shard "
            "was published. Check the checkpoint, or use dtype = 'float32'"
        )


def _present(signal: TeacherSignal | None) -> TeacherSignal:
    assert signal is not None, "the batch plan left a view out"
    return signal
