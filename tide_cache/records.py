"""The frozen records that the stages exchange, in the order the data meets them; shapes are stated here.

Shape suffixes: L student tokens of a sample, M teacher tokens, P declared spans, C chunks, N masked positions, R
positions with a top-k row, E kept ids of all those rows concatenated, S ids drawn from their tails likewise, A
active chunks of a view, J candidate chunks of all of them, concatenated, F student tokens of all candidates likewise,
T temperatures, B samples of a batch, K kept ids per row, X further ids per row, D drawn ids per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NewType

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import sums_before

if TYPE_CHECKING:  # whoever reads a cache without training waits for no import of torch
    import torch

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
UInt16s = npt.NDArray[np.uint16]
UInt32s = npt.NDArray[np.uint32]
Float32s = npt.NDArray[np.float32]

SampleId = NewType("SampleId", str)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Name of the speaker.
        content: Text of the turn.
        is_learnt: False for an answer that is shown but not learnt.
        extras: JSON object of further fields that the chat template gets: `tool_calls`, `reasoning_content`, and of a
            tool's turn `name` and `tool_call_id`. Empty where there is none.
    """

    role: str
    content: str
    is_learnt: bool = True
    extras: str = ""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One conversation of the corpus.

    `sample_id` is stable under moving the corpus (part, file name, row number), and keys the random numbers of its
    views. `origin` says where the row was read, for messages: `gsm8k_train.jsonl:17`. `tools` are the functions that
    the assistant may call, as the chat template gets them: a JSON list, empty where there is none. `trajectory` says
    in which order the last answer was revealed, where that was asked for: JSON, see `corpus/trajectories.py`.
    """

    sample_id: SampleId
    messages: tuple[Message, ...]
    origin: str
    tools: str = ""
    trajectory: str = ""


@dataclass(frozen=True, eq=False)
class PreprocessedRow:
    """One row of a preprocessed set: tokens of both sides, made elsewhere and not yet checked.

    Attributes:
        sample_id: As in `ChatRow`.
        origin: As in `ChatRow`.
        student_ids_L: Student tokens, int32.
        is_supervised_L: Student tokens that carry a label.
        teacher_ids_M: Teacher tokens, int32.
        is_teacher_labelled_M: Teacher tokens that carry a label; all of them where the set does not say.
        spans_P4: Rows (teacher_start, teacher_end, student_start, student_end), half-open, which the set says cover
            the same text, int32. They may overlap, come in any order, and reach beyond tokens that were cut off.
        is_discarded: The set itself says not to use the row.
    """

    sample_id: SampleId
    origin: str
    student_ids_L: Int32s
    is_supervised_L: Bools
    teacher_ids_M: Int32s
    is_teacher_labelled_M: Bools
    spans_P4: Int32s
    is_discarded: bool


@dataclass(frozen=True, eq=False)
class SamplePair:
    """One sample as both tokenizers see it, with the chunks that tie the two together.

    Attributes:
        sample_id: The sample's stable name.
        student_ids_L: Student tokens, int32; the clean `x_0`.
        is_supervised_L: Student tokens that may be masked and are trained on.
        teacher_ids_M: Teacher tokens, int32.
        chunks_C4: Rows (teacher_start, teacher_end, student_start, student_end), half-open, increasing, int32. Both
            spans of a chunk cover the same bytes of the same text.
    """

    sample_id: SampleId
    student_ids_L: Int32s
    is_supervised_L: Bools
    teacher_ids_M: Int32s
    chunks_C4: Int32s

    @cached_property
    def is_distillable_C(self) -> Bools:
        """Which chunks have only supervised student tokens; the others are never active."""
        return distillable_chunks(self.chunks_C4, self.is_supervised_L)

    def is_aligned_pair_C(self, shared_vocab_size: int) -> Bools:
        """Return which chunks are one token on each side with the same id below `shared_vocab_size`."""
        return aligned_pairs(self.chunks_C4, self.teacher_ids_M, self.student_ids_L, shared_vocab_size)


def distillable_chunks(chunks_C4: Int32s, is_supervised_L: Bools) -> Bools:
    """Return for each chunk whether all its student tokens are supervised."""
    unsupervised_L = sums_before(~is_supervised_L)
    result: Bools = unsupervised_L[chunks_C4[:, 3]] == unsupervised_L[chunks_C4[:, 2]]
    return result


def aligned_pairs(chunks_C4: Int32s, teacher_ids_M: Int32s, student_ids_L: Int32s, shared_vocab_size: int) -> Bools:
    """Return for each chunk whether it is one token on each side with the same id below `shared_vocab_size`."""
    teacher_start, teacher_end, student_start, student_end = chunks_C4.T
    is_single_C = (teacher_end - teacher_start == 1) & (student_end - student_start == 1)
    teacher_id_C = teacher_ids_M[np.where(is_single_C, teacher_start, 0)] if len(teacher_start) else teacher_start
    student_id_C = student_ids_L[np.where(is_single_C, student_start, 0)] if len(student_start) else student_start
    result: Bools = is_single_C & (teacher_id_C == student_id_C) & (teacher_id_C < shared_vocab_size)
    return result


@dataclass(frozen=True, eq=False)
class MaskedView:
    """One draw of diffusion time and mask for a sample.

    A chunk is masked whole or not at all, on both sides; only supervised student tokens are ever masked.

    Attributes:
        sample_id: Whose view this is.
        view: Number of the view, 0 <= view < num_views.
        t: Diffusion time in (0, 1].
        is_student_masked_L: Masked student tokens.
        is_teacher_masked_M: Masked teacher tokens.
    """

    sample_id: SampleId
    view: int
    t: float
    is_student_masked_L: Bools
    is_teacher_masked_M: Bools


@dataclass(frozen=True, eq=False)
class TailSamples:
    """Ids drawn from what `TopK` leaves out of each row, so that sums over that rest can be estimated without bias.

    Draws are independent, with replacement, in proportion to p at T = 1 outside the kept ids. The mean over a row's
    draws of f(id), times the tail's mass, is an unbiased estimate of the sum of p f over the tail.

    Attributes:
        counts_R: Number of distinct ids drawn for each row, 0 where nothing is left to draw, int32.
        ids_S: Teacher token ids, increasing within a row, none of them kept, uint32.
        logprobs_S: Their log-probabilities at T = 1, nats, float32.
        draws_S: How often each was drawn, at least 1, int32.

    Source: random sampling knowledge distillation, arXiv:2503.16870.
    """

    counts_R: Int32s
    ids_S: UInt32s
    logprobs_S: Float32s
    draws_S: Int32s


@dataclass(frozen=True, eq=False)
class TopK:
    """The teacher's most likely tokens at some masked positions, ragged, with the rest explicit.

    For every row, `exp(logprobs).sum() + exp(log_tail at T=1)` is 1 up to the rounding of the stored numbers.

    Attributes:
        rows_R: Which of the view's masked teacher positions, increasing, int32.
        counts_R: Number of kept ids of each row, at least 1, int32.
        ids_E: Teacher token ids, most likely first within a row, distinct within a row, uint32.
        logprobs_E: Their log-probabilities at T = 1, nats, float32 (float16-rounded unless the identity says float32).
        log_tail_RT: log of the sum over all other ids of p^(1/T), for each declared T; -inf when no id is left.
        log_partition_RT: log of the sum over all ids of p^(1/T); 0 at T = 1.
        tail: Ids drawn from the rest, or None when none were asked for.
    """

    rows_R: Int32s
    counts_R: Int32s
    ids_E: UInt32s
    logprobs_E: Float32s
    log_tail_RT: Float32s
    log_partition_RT: Float32s
    tail: TailSamples | None = None


@dataclass(frozen=True, eq=False)
class ProjectedTopK:
    """The teacher's distribution in the student's vocabulary, at masked student tokens of active chunks, ragged.

    A teacher's text counts for the student token that its bytes begin with; behind the first token of a chunk, only
    texts that agree with the true one so far count. teacher/projection.py has the whole of it.

    Attributes:
        rows_R: Which of the view's masked student tokens, increasing, int32.
        counts_R: Number of kept ids of each row, at least 1, int32.
        ids_E: Student token ids, most likely first within a row, distinct within a row, uint32.
        logprobs_E: Their log-probabilities at T = 1, nats, float32 (rounded as in `TopK`).
        log_tail_RT: log of the sum over all else of p^(1/T), for each declared T; -inf when nothing is left.
        log_partition_RT: log of the sum over all of p^(1/T); 0 at T = 1.
    """

    rows_R: Int32s
    counts_R: Int32s
    ids_E: UInt32s
    logprobs_E: Float32s
    log_tail_RT: Float32s
    log_partition_RT: Float32s


@dataclass(frozen=True, eq=False)
class ChunkCandidates:
    """What the teacher would write in each active chunk, as student tokens, with the rest explicit.

    A masked-diffusion teacher predicts masked positions independently given the view, so a chunk's distribution is the
    product over its teacher positions. A candidate is one tuple of teacher tokens, spelled in exactly as many student
    tokens as the chunk has; all other tuples are the tail.

    Attributes:
        chunks_A: Which of the pair's chunks, increasing, int32.
        counts_A: Candidates of each, may be 0, int32.
        ids_F: Student token ids, candidate by candidate, most likely candidate first within a chunk; each candidate
            has the chunk's student length, and is distinct within the chunk. uint32.
        logprobs_J: Log-probabilities of the candidates at T = 1, nats, float32 (rounded as in `TopK`).
        log_tail_AT: log of the sum over all other tuples of p^(1/T), for each declared T; -inf when there is none.
        log_partition_AT: log of the sum over all tuples of p^(1/T); 0 at T = 1.
    """

    chunks_A: Int32s
    counts_A: Int32s
    ids_F: UInt32s
    logprobs_J: Float32s
    log_tail_AT: Float32s
    log_partition_AT: Float32s


@dataclass(frozen=True, eq=False)
class TeacherSignal:
    """What the teacher said about one view.

    Attributes:
        truth_logprobs_N: log p(true token) at each masked teacher position, T = 1, nats, float32.
        is_top1_N: Whether the true token was the teacher's most likely one.
        topk: The `topk` signal at the positions of aligned pairs, or None when it was not captured.
        is_shown_first_N: In the `compdemo` pass, the positions that the first of its two forwards showed; their signal
            comes from the second. None in the `plain` pass.
        chunks: The `chunks` signal at the view's active chunks, or None when it was not captured.
        projected: The `projected` signal at the student tokens of active chunks, or None when it was not captured.
        steps_to_reveal_N: Of each masked *student* token, how many forwards of the view's decoding it took until it was
            revealed, at least 1, uint16; None where masks are drawn.
    """

    truth_logprobs_N: Float32s
    is_top1_N: Bools
    topk: TopK | None
    is_shown_first_N: Bools | None = None
    chunks: ChunkCandidates | None = None
    projected: ProjectedTopK | None = None
    steps_to_reveal_N: UInt16s | None = None


@dataclass(frozen=True, eq=False)
class ViewRecord:
    """A masked view with its sample and, where there is a teacher, the teacher's signal.

    `source` is the place of the view's source in a mix.
    """

    pair: SamplePair
    view: MaskedView
    signal: TeacherSignal | None
    source: int = 0


@dataclass(frozen=True, eq=False)
class KeptBlocks:
    """What of the masked and clean copies has a part in the hidden states of masked rows; the rest is not computed.

    A block of a masked copy is seen by itself alone, so that one without a masked row, as those of a prompt, can be
    left out. A block of the clean copy is seen by later blocks: none is after the last that is kept. What is left gives
    the same hidden states as the whole.

    Attributes:
        block_size: Tokens per block.
        index_BR: Position in L of each of the R tokens that a masked copy keeps, int64; 0 where a sample has fewer.
        is_kept_BR: False there.
        clean_length: Tokens of the clean copy that are kept.
        place_N: Where in the packed sequence each masked row lies, int64.
    """

    block_size: int
    index_BR: torch.Tensor
    is_kept_BR: torch.Tensor
    clean_length: int
    place_N: torch.Tensor

    @property
    def view_length(self) -> int:
        """Tokens that a masked copy keeps."""
        return self.index_BR.shape[1]


@dataclass(frozen=True, eq=False)
class StudentBatch:
    """One micro-batch for the student, padded to a multiple of the block size, without the targets.

    Rows are the masked supervised tokens in the order of `x_t_BL`; N may be zero. With several views of each sample
    `x_t_BL` is [B, n L]: the views of a sample follow one another, with one clean copy.

    Attributes:
        x_0_BL: Clean tokens, int64; padding holds the pad id.
        x_t_BL: The same with masked tokens replaced by the mask id, int64.
        is_real_BL: False at padding.
        row_sample_N: Where each masked row lies in the first axis of `x_t_BL`, int64.
        row_position_N: Where in the second, int64.
        sample_BL: Where several samples share a row: which of them each token belongs to, int64, -1 at the row's end;
            a sample begins at a multiple of the block size. None where each sample has its own row.
        kept: What of the copies is computed in the `block` context; None where that is still to be found.
    """

    x_0_BL: torch.Tensor
    x_t_BL: torch.Tensor
    is_real_BL: torch.Tensor
    row_sample_N: torch.Tensor
    row_position_N: torch.Tensor
    sample_BL: torch.Tensor | None = None
    kept: KeptBlocks | None = None


@dataclass(frozen=True, eq=False)
class TruthTargets:
    """What the teacher says of the true tokens, chunk by chunk.

    Attributes:
        chunk_of_row_N: Active chunk of each row, -1 for none, int64.
        chunk_logprob_C: Teacher log-prob of the true tokens of each active chunk, summed, nats, float32.
        chunk_t_C: Diffusion time of each active chunk's view, float32.
    """

    chunk_of_row_N: torch.Tensor
    chunk_logprob_C: torch.Tensor
    chunk_t_C: torch.Tensor


@dataclass(frozen=True, eq=False)
class TopKTargets:
    """The teacher's candidates for single tokens, padded.

    Attributes:
        rows_R: Rows that carry teacher candidates, increasing, int64.
        kept_ids_NK: Kept ids, -1 where a row has fewer than K, int64.
        kept_logprobs_NK: Their teacher log-probs at T = 1, -inf at padding, float32.
        log_tail_NT: As in `TopK`; 0 where a row has no candidates.
        log_partition_NT: As in `TopK`; 0 where a row has no candidates.
        drawn_column_ND: Where the logit of an id drawn from a row's tail is gathered, -1 where a row has fewer, int64.
        drawn_logprob_ND: Its teacher log-prob at T = 1, float32.
        drawn_share_ND: Its share of the row's draws, float32; 0 where there is none.
    """

    rows_R: torch.Tensor
    kept_ids_NK: torch.Tensor
    kept_logprobs_NK: torch.Tensor
    log_tail_NT: torch.Tensor
    log_partition_NT: torch.Tensor
    drawn_column_ND: torch.Tensor
    drawn_logprob_ND: torch.Tensor
    drawn_share_ND: torch.Tensor

    @property
    def has_topk_N(self) -> torch.Tensor:
        """Tell of each row whether it carries teacher candidates."""
        none_N = self.kept_ids_NK[:, :0].any(dim=1)
        return none_N.index_fill(0, self.rows_R, True)


@dataclass(frozen=True, eq=False)
class ChunkTargets:
    """The teacher's candidates for whole chunks.

    Attributes:
        candidate_chunk_J: Active chunk of each candidate, int64.
        candidate_logprob_J: Teacher log-prob of each candidate at T = 1, float32.
        token_candidate_F: Candidate of each candidate token, int64.
        token_row_F: Masked row of each candidate token, int64.
        token_column_F: Where its logit is gathered, int64.
        log_tail_CT: As in `ChunkCandidates`; 0 where a chunk has no entry.
        log_partition_CT: As in `ChunkCandidates`; 0 where a chunk has no entry.
    """

    candidate_chunk_J: torch.Tensor
    candidate_logprob_J: torch.Tensor
    token_candidate_F: torch.Tensor
    token_row_F: torch.Tensor
    token_column_F: torch.Tensor
    log_tail_CT: torch.Tensor
    log_partition_CT: torch.Tensor


@dataclass(frozen=True, eq=False)
class Targets:
    """What the objectives compare the student with; all of it is data, not on the graph.

    Attributes:
        true_id_N: The token under each mask, int64.
        view_N: Number within the batch of each row's view, increasing, int64.
        t_N: Diffusion time of each row's view, float32.
        time_weight_N: -alpha'(t) / (1 - alpha(t)) of the view's mask schedule, 1/t for the linear one, float32.
        mask_weight_N: Weight that makes tokens of all chunks count equally, see `views.weights`, float32.
        num_supervised: Supervised tokens of the batch, masked or not.
        temperatures: The T of the last axis of tails and partitions.
        extra_ids_NX: Further ids whose student logits are needed, -1 where a row has fewer than X, int64; distinct from
            each other and from the row's kept ids.
        truth: The signal `truth`; without chunks where there is no teacher.
        topk: The signal `topk` or `projected`; without candidates where neither was captured, or is read.
        chunks: The signal `chunks`; likewise.
        steps_to_reveal_N: As in `TeacherSignal`, int64; None where no view, or not every one, has it.
    """

    true_id_N: torch.Tensor
    view_N: torch.Tensor
    t_N: torch.Tensor
    time_weight_N: torch.Tensor
    mask_weight_N: torch.Tensor
    num_supervised: int
    temperatures: tuple[float, ...]
    extra_ids_NX: torch.Tensor
    truth: TruthTargets
    topk: TopKTargets
    chunks: ChunkTargets
    steps_to_reveal_N: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """All that an objective needs of the student's distribution at each masked row, on the graph, float32 or float64.

    Attributes:
        gathered_NK: Logits at the ids asked for, at T = 1; 0 at padding.
        log_z_NT: logsumexp over the vocabulary of logits / T.
        log_rest_NT: logsumexp of logits / T over the ids outside the kept ones; -inf when none is left.
        temperatures: The T of the last axis.
    """

    gathered_NK: torch.Tensor
    log_z_NT: torch.Tensor
    log_rest_NT: torch.Tensor
    temperatures: tuple[float, ...]
