"""A batch and its targets against a slow reference that goes token by token."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.pair_examples import one_to_one, pairs
from helpers.target_examples import leaves
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.modeling.row_signals import row_signals
from tide_cache.records import TeacherSignal, TopK, ViewRecord
from tide_cache.views import draw_view
from tide_cache.views.weights import ViewLaw, denoising_weights, unit_sizes

TEACHER_VOCAB, SHARED = 14, 9
TEMPERATURES = (1.0, 2.0, 0.5)
PLAN = BatchLayout(
    mask_id=98, pad_id=99, block_size=4, shared_vocab_size=SHARED, temperatures=TEMPERATURES, schedule="cosine"
)
VIEWS = ViewsConfig(num_views=2, seed=1, time_sampling="uniform", schedule="cosine", complementary=False)


def record_of(pair, view_number, top_k, top_p, seed):
    """A view with a signal of a random teacher, whose ids from SHARED on mean something else to the student."""
    view = draw_view(pair, view_number, VIEWS)
    positions = np.flatnonzero(view.is_teacher_masked_M)
    logits_NV = 3 * torch.randn(len(positions), TEACHER_VOCAB, generator=torch.Generator().manual_seed(seed))
    wants_M = np.zeros(len(pair.teacher_ids_M), bool)
    wants_M[pair.chunks_C4[pair.is_aligned_pair_C(SHARED) & pair.is_distillable_C, 0]] = True
    true_ids_N = torch.from_numpy(pair.teacher_ids_M[positions].astype(np.int64))
    wants_N = torch.from_numpy(wants_M[positions])
    plan = SignalsConfig(temperatures=TEMPERATURES, top_k=top_k, top_p=top_p)
    rows = row_signals(logits_NV, torch.eye(TEACHER_VOCAB), true_ids_N, wants_N * plan.top_p, plan, 64)
    is_kept_NK = torch.arange(rows.ids_NK.shape[1]) < rows.counts_N[:, None]
    topk = TopK(
        rows_R=wants_N.nonzero().squeeze(1).numpy().astype(np.int32),
        counts_R=rows.counts_N[wants_N].numpy().astype(np.int32),
        ids_E=rows.ids_NK[is_kept_NK].numpy().astype(np.uint32),
        logprobs_E=rows.logprobs_NK[is_kept_NK].numpy(),
        log_tail_RT=rows.log_tail_NT[wants_N].numpy(),
        log_partition_RT=rows.log_partition_NT[wants_N].numpy(),
    )
    return ViewRecord(pair, view, TeacherSignal(rows.truth_logprobs_N.numpy(), rows.is_top1_N.numpy(), topk))


@st.composite
def records(draw, vocab=TEACHER_VOCAB, max_size=4):
    top_k, top_p = draw(st.integers(1, TEACHER_VOCAB)), draw(st.sampled_from([0.3, 0.9, 1.0]))
    samples = draw(st.lists(pairs(vocab=vocab, max_spans=12), min_size=1, max_size=max_size))
    return [record_of(pair, draw(st.integers(0, 3)), top_k, top_p, draw(st.integers(0, 999))) for pair in samples]


DENSE = [
    record_of(one_to_one("a", 12, SHARED), 1, 6, 0.9, seed=0),
    record_of(one_to_one("b", 7, TEACHER_VOCAB), 1, 6, 0.9, seed=1),
]
"""Aligned pairs throughout, shared and not; random samples have few."""


def expected_rows(records):
    """One dict per masked student token, in order; and one per active chunk."""
    rows, chunks = [], []
    for sample, (pair, view, signal) in enumerate((r.pair, r.view, r.signal) for r in records):
        teacher_row = {int(at): n for n, at in enumerate(np.flatnonzero(view.is_teacher_masked_M))}
        candidates, first = {}, 0
        for r, (row, count) in enumerate(zip(signal.topk.rows_R.tolist(), signal.topk.counts_R.tolist(), strict=True)):
            candidates[row] = (r, slice(first, first + count))
            first += count
        chunk_of, topk_of = {}, {}
        for t0, t1, s0, s1 in pair.chunks_C4.tolist():
            if not all(view.is_student_masked_L[s0:s1]) or not all(pair.is_supervised_L[s0:s1]):
                continue
            chunk_of |= dict.fromkeys(range(s0, s1), len(chunks))
            chunks.append(
                {"logprob": sum(float(signal.truth_logprobs_N[teacher_row[m]]) for m in range(t0, t1)), "t": view.t}
            )
            if t1 - t0 == s1 - s0 == 1 and pair.teacher_ids_M[t0] == pair.student_ids_L[s0] < SHARED:
                topk_of[s0] = candidates[teacher_row[t0]]
        for position in np.flatnonzero(view.is_student_masked_L).tolist():
            rows.append(
                {
                    "sample": sample,
                    "position": position,
                    "true_id": int(pair.student_ids_L[position]),
                    "t": view.t,
                    "weight": math.pi
                    / 2
                    * math.sin(math.pi / 2 * (1 - view.t))
                    / (math.sin(math.pi / 2 * view.t) + 1e-6),
                    "chunk": chunk_of.get(position, -1),
                    "kept": kept_of(signal.topk, topk_of[position]) if position in topk_of else None,
                }
            )
    return rows, chunks


def weights_alone(record):
    """What tests/views/test_weights.py holds to its law, of one view."""
    pair, mask_L = record.pair, record.view.is_student_masked_L
    unit_L = unit_sizes(pair.is_supervised_L, pair.chunks_C4[:, 2:])
    return denoising_weights(unit_L, mask_L, np.zeros(len(mask_L), np.int64), [ViewLaw("cosine", False)]).tolist()


def kept_of(topk, place):
    """Ids the student shares, with their log-probs; the tail and the partition with all other ids in it."""
    r, entries = place
    both = list(zip(topk.ids_E[entries].tolist(), topk.logprobs_E[entries].tolist(), strict=True))
    tails = [
        math.exp(tail) + sum(math.exp(logprob / temperature) for i, logprob in both if i >= SHARED)
        for tail, temperature in zip(topk.log_tail_RT[r].tolist(), TEMPERATURES, strict=True)
    ]
    return {
        "ids": [i for i, _ in both if i < SHARED],
        "logprobs": [logprob for i, logprob in both if i < SHARED],
        "tails": [math.log(tail) if tail else -math.inf for tail in tails],
        "partitions": topk.log_partition_RT[r].tolist(),
    }


@given(records())
@example(DENSE)
def test_everything_equals_the_slow_reference(records):
    batch, targets = collate(records, PLAN)
    rows, chunks = expected_rows(records)
    assert batch.row_sample_N.tolist() == [row["sample"] for row in rows]
    assert batch.row_position_N.tolist() == [row["position"] for row in rows]
    assert targets.true_id_N.tolist() == [row["true_id"] for row in rows]
    assert targets.t_N.tolist() == pytest.approx([row["t"] for row in rows])
    assert targets.time_weight_N.tolist() == pytest.approx([row["weight"] for row in rows], rel=1e-6)
    alone = [weights_alone(record) for record in records]
    assert targets.mask_weight_N.tolist() == pytest.approx([weight for weights in alone for weight in weights])
    assert targets.truth.chunk_of_row_N.tolist() == [row["chunk"] for row in rows]
    assert targets.truth.chunk_logprob_C.tolist() == pytest.approx([chunk["logprob"] for chunk in chunks], abs=1e-4)
    assert targets.truth.chunk_t_C.tolist() == pytest.approx([chunk["t"] for chunk in chunks])
    assert targets.num_supervised == sum(int(record.pair.is_supervised_L.sum()) for record in records)
    assert targets.temperatures == TEMPERATURES
    assert targets.topk.has_topk_N.tolist() == [row["kept"] is not None for row in rows]
    for n, row in enumerate(rows):
        kept = row["kept"] or {"ids": [], "logprobs": [], "tails": [0, 0, 0], "partitions": [0, 0, 0]}
        size = len(kept["ids"])
        assert targets.topk.kept_ids_NK[n, :size].tolist() == kept["ids"]
        assert targets.topk.kept_logprobs_NK[n, :size].tolist() == kept["logprobs"]
        assert (targets.topk.kept_ids_NK[n, size:] == -1).all()
        assert (targets.topk.kept_logprobs_NK[n, size:] == -math.inf).all()
        assert targets.topk.log_tail_NT[n].tolist() == pytest.approx(kept["tails"], abs=1e-4)
        assert targets.topk.log_partition_NT[n].tolist() == pytest.approx(kept["partitions"])


@given(records())
@example(DENSE)
def test_ids_the_student_lacks_move_to_the_rest_and_no_mass_is_lost(records):
    _, targets = collate(records, PLAN)
    assert (targets.topk.kept_ids_NK < SHARED).all()
    for index, temperature in enumerate(TEMPERATURES):
        kept_N = (targets.topk.kept_logprobs_NK / temperature).exp().sum(dim=1)[targets.topk.has_topk_N]
        whole_N = targets.topk.log_partition_NT[targets.topk.has_topk_N, index].exp()
        torch.testing.assert_close(
            kept_N + targets.topk.log_tail_NT[targets.topk.has_topk_N, index].exp(), whole_N, rtol=1e-4, atol=0
        )


@given(records())
@example(DENSE)
def test_x_t_hides_the_masked_tokens_only_and_padding_is_marked(records):
    batch, _ = collate(records, PLAN)
    length = batch.x_0_BL.shape[1]
    longest = max(len(record.pair.student_ids_L) for record in records)
    assert length % PLAN.block_size == 0
    assert longest <= length < longest + PLAN.block_size
    for b, (pair, view) in enumerate((record.pair, record.view) for record in records):
        ids = pair.student_ids_L.tolist()
        padding = [PLAN.pad_id] * (length - len(ids))
        shown = [PLAN.mask_id if masked else i for i, masked in zip(ids, view.is_student_masked_L, strict=True)]
        assert batch.x_0_BL[b].tolist() == ids + padding
        assert batch.x_t_BL[b].tolist() == shown + padding
        assert batch.is_real_BL[b].tolist() == [True] * len(ids) + [False] * len(padding)


@given(records(max_size=3))
@example(DENSE)
def test_a_record_gives_the_same_targets_alone_as_in_a_batch(records):
    _, together = collate(records, PLAN)
    alone = [collate([record], PLAN)[1] for record in records]
    for name in PER_ROW + PER_CHUNK:
        parts = [leaves(targets)[name] for targets in alone]
        torch.testing.assert_close(leaves(together)[name], torch.cat(parts), rtol=0, atol=0)
    sizes = [len(targets.true_id_N) for targets in alone]
    for targets, kept_ids, kept_logprobs in zip(
        alone, together.topk.kept_ids_NK.split(sizes), together.topk.kept_logprobs_NK.split(sizes), strict=True
    ):
        width = targets.topk.kept_ids_NK.shape[1]
        assert torch.equal(kept_ids[:, :width], targets.topk.kept_ids_NK)
        assert torch.equal(kept_logprobs[:, :width], targets.topk.kept_logprobs_NK)
        assert (kept_ids[:, width:] == -1).all()
    first_chunk, expected = 0, []
    for targets in alone:
        expected += [chunk + first_chunk if chunk >= 0 else -1 for chunk in targets.truth.chunk_of_row_N.tolist()]
        first_chunk += len(targets.truth.chunk_logprob_C)
    assert together.truth.chunk_of_row_N.tolist() == expected
    assert together.num_supervised == sum(targets.num_supervised for targets in alone)


PER_ROW = ("true_id_N", "t_N", "time_weight_N", "mask_weight_N", "log_tail_NT", "log_partition_NT")
PER_CHUNK = ("chunk_logprob_C", "chunk_t_C")
INTEGERS = (
    "true_id_N", "rows_R", "kept_ids_NK", "chunk_of_row_N", "extra_ids_NX", "drawn_column_ND", "candidate_chunk_J",
    "token_candidate_F", "token_row_F", "token_column_F",
)  # fmt: skip
DTYPES = dict.fromkeys((*INTEGERS, "view_N"), torch.int64)


@pytest.mark.parametrize("with_signal", [True, False])
def test_dtypes_are_those_of_the_records(with_signal):
    record = record_of(one_to_one("a", 9, SHARED), 0, 4, 0.9, 0)
    batch, targets = collate([record if with_signal else replace(record, signal=None)], PLAN)
    for name, value in leaves(targets).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == DTYPES.get(name, torch.float32), name
    assert batch.x_0_BL.dtype == batch.x_t_BL.dtype == batch.row_sample_N.dtype == torch.int64
    assert batch.is_real_BL.dtype == torch.bool


@given(records(max_size=3))
@example(DENSE)
def test_without_a_teacher_there_are_rows_but_neither_chunks_nor_candidates(records):
    batch, targets = collate([replace(record, signal=None) for record in records], replace(PLAN, temperatures=()))
    _, taught = collate(records, PLAN)
    for name in ("true_id_N", "t_N", "time_weight_N", "mask_weight_N"):
        assert torch.equal(getattr(targets, name), getattr(taught, name))
    assert (targets.truth.chunk_of_row_N == -1).all()
    assert not targets.topk.has_topk_N.any()
    assert targets.truth.chunk_logprob_C.shape == (0,)
    assert targets.topk.kept_ids_NK.shape == (len(batch.row_sample_N), 0)
    assert targets.topk.log_tail_NT.shape == (len(batch.row_sample_N), 0)


def test_a_cache_of_truth_alone_gives_chunks_without_candidates():
    record = record_of(one_to_one("a", 9, SHARED), 0, 4, 0.9, 0)
    signal = replace(record.signal, topk=None)
    _, targets = collate([replace(record, signal=signal)], PLAN)
    _, whole = collate([record], PLAN)
    assert not targets.topk.has_topk_N.any()
    assert targets.topk.kept_ids_NK.shape[1] == 0
    assert torch.equal(targets.truth.chunk_logprob_C, whole.truth.chunk_logprob_C)
    assert torch.equal(targets.truth.chunk_of_row_N, whole.truth.chunk_of_row_N)


def test_nothing_masked_gives_no_rows():
    pair = replace(one_to_one("a", 6, SHARED), is_supervised_L=np.zeros(6, bool))
    batch, targets = collate([record_of(pair, 0, 4, 0.9, 0)], PLAN)
    assert torch.equal(batch.x_0_BL, batch.x_t_BL)
    assert len(batch.row_sample_N) == len(targets.true_id_N) == len(targets.truth.chunk_logprob_C) == 0
    assert targets.num_supervised == 0


@given(records())
@example(DENSE)
def test_rows_of_pairs_that_the_plan_does_not_share_are_left_out(records):
    _, targets = collate(records, replace(PLAN, shared_vocab_size=5))
    _, whole = collate(records, PLAN)
    assert torch.equal(targets.topk.has_topk_N, whole.topk.has_topk_N & (targets.true_id_N < 5))
    assert (targets.topk.kept_ids_NK < 5).all()
    assert (targets.topk.kept_ids_NK[~targets.topk.has_topk_N] == -1).all()
    assert (targets.topk.log_partition_NT[~targets.topk.has_topk_N] == 0).all()


def test_all_candidates_foreign_leaves_the_rest_alone():
    record = record_of(one_to_one("a", 9, 3), 0, TEACHER_VOCAB, 1.0, 0)
    _, targets = collate([record], replace(PLAN, shared_vocab_size=3))
    kept_per_row = (targets.topk.kept_ids_NK >= 0).sum(dim=1)
    assert targets.topk.has_topk_N.any()
    assert kept_per_row.max() <= 3
    only_foreign = replace(record.signal.topk, ids_E=(record.signal.topk.ids_E % 4 + 10).astype(np.uint32))
    _, targets = collate([replace(record, signal=replace(record.signal, topk=only_foreign))], PLAN)
    assert targets.topk.has_topk_N.any()
    assert targets.topk.kept_ids_NK.shape[1] == 0
    torch.testing.assert_close(
        targets.topk.log_tail_NT[targets.topk.has_topk_N],
        targets.topk.log_partition_NT[targets.topk.has_topk_N],
        atol=1e-5,
        rtol=0,
    )
