"""The paper's training step, with the teacher in the loop: written anew from what the paper and its code do.

Every step runs the teacher. Student and teacher give the logits of every position of what they are shown, [x_t, x_0]
where that is both halves, the student's in float32; losses are taken from the masked rows of these. CompDemo shows the
teacher two partial views, each in a separate forward. Sources: arXiv:2604.26951 and the behaviour of its code
(TIDE@da47bac); nothing here is copied from it.

Shape suffixes as in `tide_cache.records`; S packed tokens, V vocabulary, P aligned pairs that are masked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.packing import pack_block, pack_full
from tide_cache.objectives.base import MAX_PROB, MIN_PROB
from tide_cache.records import Bools, MaskedView, SamplePair
from tide_cache.views import draw_shown_first

Method = Literal["kl", "reverse_kl", "calm", "reverse_calm", "tidal_kl", "tidal_calm"]


@dataclass(frozen=True)
class OnlineSettings:
    """How the reference trains.

    Attributes:
        method: What is added to the cross-entropy.
        temperature: Of that.
        context: What the teacher is shown: `full` is x_t alone, `block` [x_t, x_0].
        compdemo: Whether the teacher sees two partial views instead of the view.
        block_size: Tokens per block.
        student_mask_id: The student's mask token.
        teacher_mask_id: The teacher's.
        pad_id: Fills samples up to the longest.
        shared_vocab_size: Ids below it mean the same to both.
        demo_ratio: Share of the masked chunks that the first partial view shows.
        upcast_teacher: Whether the teacher's logits are float32 too.
    """

    method: Method
    temperature: float
    context: Literal["full", "block"]
    compdemo: bool
    block_size: int
    student_mask_id: int
    teacher_mask_id: int
    pad_id: int
    shared_vocab_size: int
    demo_ratio: float = 0.5
    upcast_teacher: bool = False


@dataclass(frozen=True, eq=False)
class OnlineBatch:
    """Samples with their masks, padded, on the device.

    Attributes:
        x_0_BL: Student tokens.
        is_real_BL: False at padding.
        is_masked_BL: Masked student tokens.
        teacher_x_0_BM: Teacher tokens.
        teacher_is_real_BM: False at padding.
        teacher_is_masked_BM: Masked teacher tokens.
        is_shown_first_BM: Those of them that the first partial view shows.
        t_B: Diffusion times.
        num_supervised: Student tokens that may be masked.
        pairs_P3: Sample, teacher position and student position of each masked aligned pair.
        student_chunks_N3: Sample, student position and chunk of each student token of an active chunk.
        teacher_chunks_N3: Sample, teacher position and chunk of each teacher token of one.
        chunk_t_C: Diffusion time of each active chunk's view.
    """

    x_0_BL: torch.Tensor
    is_real_BL: torch.Tensor
    is_masked_BL: torch.Tensor
    teacher_x_0_BM: torch.Tensor
    teacher_is_real_BM: torch.Tensor
    teacher_is_masked_BM: torch.Tensor
    is_shown_first_BM: torch.Tensor
    t_B: torch.Tensor
    num_supervised: int
    pairs_P3: torch.Tensor
    student_chunks_N3: torch.Tensor
    teacher_chunks_N3: torch.Tensor
    chunk_t_C: torch.Tensor


def make_batch(
    pairs: Sequence[SamplePair], views: Sequence[MaskedView], settings: OnlineSettings, device: str, seed: int = 0
) -> OnlineBatch:
    """Lay samples and views out.

    Args:
        pairs: The samples.
        views: One of each.
        settings: Ids and sizes.
        device: Where the models are.
        seed: Of the split of CompDemo.
    """
    shown = [draw_shown_first(pair, view, seed, settings.demo_ratio) for pair, view in zip(pairs, views, strict=True)]
    aligned, of_student, of_teacher, chunk_t = [], [], [], []
    for b, (pair, view) in enumerate(zip(pairs, views, strict=True)):
        is_active_C = pair.is_distillable_C & view.is_student_masked_L[pair.chunks_C4[:, 2]]
        for start, end, student_start, student_end in pair.chunks_C4[is_active_C].tolist():
            of_teacher += [(b, position, len(chunk_t)) for position in range(start, end)]
            of_student += [(b, position, len(chunk_t)) for position in range(student_start, student_end)]
            chunk_t.append(view.t)
        is_pair_C = is_active_C & pair.is_aligned_pair_C(settings.shared_vocab_size)
        aligned += [(b, row[0], row[2]) for row in pair.chunks_C4[is_pair_C].tolist()]
    student_length = _padded_length([len(pair.student_ids_L) for pair in pairs], settings.block_size)
    teacher_length = _padded_length([len(pair.teacher_ids_M) for pair in pairs], settings.block_size)

    def laid_out(rows: Sequence[np.ndarray], length: int, fill: int | bool) -> torch.Tensor:
        result = np.full((len(rows), length), fill, bool if isinstance(fill, bool) else np.int64)
        for row, values in zip(result, rows, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(result).to(device)

    def triples(rows: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 3)

    real: list[Bools] = [np.ones(len(pair.student_ids_L), bool) for pair in pairs]
    teacher_real: list[Bools] = [np.ones(len(pair.teacher_ids_M), bool) for pair in pairs]
    return OnlineBatch(
        x_0_BL=laid_out([pair.student_ids_L for pair in pairs], student_length, settings.pad_id),
        is_real_BL=laid_out(real, student_length, False),
        is_masked_BL=laid_out([view.is_student_masked_L for view in views], student_length, False),
        teacher_x_0_BM=laid_out([pair.teacher_ids_M for pair in pairs], teacher_length, settings.pad_id),
        teacher_is_real_BM=laid_out(teacher_real, teacher_length, False),
        teacher_is_masked_BM=laid_out([view.is_teacher_masked_M for view in views], teacher_length, False),
        is_shown_first_BM=laid_out(shown, teacher_length, False),
        t_B=torch.tensor([view.t for view in views], dtype=torch.float32, device=device),
        num_supervised=int(sum(pair.is_supervised_L.sum() for pair in pairs)),
        pairs_P3=triples(aligned),
        student_chunks_N3=triples(of_student),
        teacher_chunks_N3=triples(of_teacher),
        chunk_t_C=torch.tensor(chunk_t, dtype=torch.float32, device=device),
    )


def _padded_length(lengths: Sequence[int], block_size: int) -> int:
    return -(-max(lengths) // block_size) * block_size


class OnlineTrainer:
    """Student, teacher and AdamW on one device, as the paper has them: in the model's dtype, without float32 copies."""

    def __init__(self, student: Backbone, teacher: Backbone, settings: OnlineSettings, lr: float = 1e-5) -> None:
        self._student, self._teacher, self.settings = student.train(), teacher.eval(), settings
        self._optimizer = torch.optim.AdamW(student.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=0.0)

    def step(self, batch: OnlineBatch, progress: float) -> float:
        """Train on a batch; gives the loss.

        Args:
            batch: The samples.
            progress: Share of the run's steps that are taken.
        """
        loss = sum(self.losses(batch, progress))
        assert isinstance(loss, torch.Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())  # the published loop logs each step's loss, and so waits for it

    def losses(self, batch: OnlineBatch, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy and what is added to it, in nats, on the graph."""
        teacher_logits_BMV = self._teacher_logits(batch)
        student_logits_BLV = self._student_logits(batch)
        return self._cross_entropy(student_logits_BLV, batch), self._distillation(
            student_logits_BLV, teacher_logits_BMV, batch, progress
        )

    def _student_logits(self, batch: OnlineBatch) -> torch.Tensor:
        """Logits of x_t's half, after those of both halves were computed, in float32."""
        x_t_BL = batch.x_0_BL.masked_fill(batch.is_masked_BL, self.settings.student_mask_id)
        packed = pack_block(x_t_BL[:, None], batch.x_0_BL, batch.is_real_BL, self.settings.block_size)
        logits_BSV = (self._student(packed) @ self._student.head_VD.T).float()
        return logits_BSV[:, : batch.x_0_BL.shape[1]]

    @torch.no_grad()
    def _teacher_logits(self, batch: OnlineBatch) -> torch.Tensor:
        is_masked_BM = batch.teacher_is_masked_BM
        if not self.settings.compdemo:
            return self._forward_teacher(batch, is_masked_BM)
        second_BMV = self._forward_teacher(batch, is_masked_BM & batch.is_shown_first_BM)
        first_BMV = self._forward_teacher(batch, is_masked_BM & ~batch.is_shown_first_BM)
        return torch.where(batch.is_shown_first_BM[:, :, None], second_BMV, first_BMV)

    def _forward_teacher(self, batch: OnlineBatch, is_masked_BM: torch.Tensor) -> torch.Tensor:
        x_t_BM = batch.teacher_x_0_BM.masked_fill(is_masked_BM, self.settings.teacher_mask_id)
        if self.settings.context == "full":
            packed = pack_full(x_t_BM, batch.teacher_is_real_BM)
        else:
            real_BM = batch.teacher_is_real_BM
            packed = pack_block(x_t_BM[:, None], batch.teacher_x_0_BM, real_BM, self.settings.block_size)
        logits_BSV = self._teacher(packed) @ self._teacher.head_VD.T
        if self.settings.upcast_teacher:
            logits_BSV = logits_BSV.float()
        return logits_BSV[:, : x_t_BM.shape[1]]

    def _cross_entropy(self, logits_BLV: torch.Tensor, batch: OnlineBatch) -> torch.Tensor:
        truth_BL = logits_BLV.log_softmax(dim=-1).gather(2, batch.x_0_BL[:, :, None])[:, :, 0]
        weighted_BL = torch.where(batch.is_masked_BL, -truth_BL / batch.t_B[:, None], 0)
        return weighted_BL.sum() / batch.num_supervised

    def _distillation(
        self, student_BLV: torch.Tensor, teacher_BMV: torch.Tensor, batch: OnlineBatch, progress: float
    ) -> torch.Tensor:
        if self.settings.method in ("kl", "reverse_kl", "tidal_kl"):
            return self._on_pairs(student_BLV, teacher_BMV, batch, progress)
        return self._on_chunks(student_BLV, teacher_BMV, batch, progress)

    def _on_pairs(
        self, student_BLV: torch.Tensor, teacher_BMV: torch.Tensor, batch: OnlineBatch, progress: float
    ) -> torch.Tensor:
        sample_P, teacher_P, position_P = batch.pairs_P3.T
        vocab_size = min(student_BLV.shape[2], teacher_BMV.shape[2])
        student_PV = student_BLV[sample_P, position_P, :vocab_size] / self.settings.temperature
        teacher_PV = teacher_BMV[sample_P, teacher_P, :vocab_size].float() / self.settings.temperature
        if self.settings.method == "tidal_kl":
            trust_P1 = self._trust(batch.t_B[sample_P], progress)[:, None]
            teacher_PV = (1 - trust_P1) * student_PV.detach() + trust_P1 * teacher_PV
        q_PV, p_PV = student_PV.log_softmax(dim=-1), teacher_PV.log_softmax(dim=-1)
        if self.settings.method == "reverse_kl":
            p_PV, q_PV = q_PV, p_PV
        kl_P = (p_PV.exp() * (p_PV - q_PV)).sum(dim=-1)
        if self.settings.method == "tidal_kl":
            kl_P = kl_P * _midrange(batch.t_B[sample_P])
        return self.settings.temperature**2 * kl_P.sum() / max(len(kl_P), 1)

    def _on_chunks(
        self, student_BLV: torch.Tensor, teacher_BMV: torch.Tensor, batch: OnlineBatch, progress: float
    ) -> torch.Tensor:
        student_C = _chunk_logprobs(student_BLV, batch.x_0_BL, batch.student_chunks_N3, len(batch.chunk_t_C))
        teacher_C = _chunk_logprobs(teacher_BMV, batch.teacher_x_0_BM, batch.teacher_chunks_N3, len(batch.chunk_t_C))
        q_C, p_C = ((x / self.settings.temperature).exp().clamp(MIN_PROB, MAX_PROB) for x in (student_C, teacher_C))
        if self.settings.method == "tidal_calm":
            trust_C = self._trust(batch.chunk_t_C, progress)
            p_C = ((1 - trust_C) * q_C.detach() + trust_C * p_C).clamp(MIN_PROB, MAX_PROB)
        if self.settings.method == "reverse_calm":
            p_C, q_C = q_C, p_C
        loss_C = -(p_C * q_C.log() + (1 - p_C) * (1 - q_C).log())
        if self.settings.method == "tidal_calm":
            loss_C = loss_C * _midrange(batch.chunk_t_C)
        return loss_C.sum() / max(len(loss_C), 1)

    def _trust(self, t: torch.Tensor, progress: float) -> torch.Tensor:
        return (0.1 + 0.8 * (1 - math.cos(math.pi * progress)) / 2) * (1 - t)


def _midrange(t: torch.Tensor) -> torch.Tensor:
    return torch.exp(-((t - 0.5) ** 2) / (2 * 0.15**2))


def _chunk_logprobs(
    logits_BXV: torch.Tensor, ids_BX: torch.Tensor, chunks_N3: torch.Tensor, num_chunks: int
) -> torch.Tensor:
    """Sum log-probs of the true tokens over each chunk."""
    truth_BX = logits_BXV.float().log_softmax(dim=-1).gather(2, ids_BX[:, :, None])[:, :, 0]
    sample_N, position_N, chunk_N = chunks_N3.T
    return truth_BX.new_zeros(num_chunks).index_add(0, chunk_N, truth_BX[sample_N, position_N])
