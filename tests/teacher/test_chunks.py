"""Candidate chunks: exactly the likeliest tuples, and candidates and tail are always the whole distribution."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.pair_examples import pairs
from helpers.target_examples import end_to_end
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.row_signals import row_signals
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.teacher.chunks import chunk_candidates
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.teacher.tuples import AskedChunks, ChunkRows, _best, _cut, _lists
from tide_cache.views import draw_view
from tide_cache.views.masking import active_chunks

VOCAB, TEMPERATURES, KINDS = 6, (1.0, 2.0), ("truth", "topk", "chunks")
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Speller:
    """A vocabulary of teacher tokens with given spellings; by default every token is itself."""

    def __init__(self, spelled=None):
        self.spelled = spelled or {}

    def of(self, ids):
        parts = [self.spelled.get(i, (i,)) for i in ids]
        return None if None in parts else tuple(token for part in parts for token in part)

    def single(self, ids_J, sizes_J):
        result = np.full((len(ids_J), max(1, *sizes_J)), -1, np.int32)
        for j, (i, size) in enumerate(zip(ids_J.tolist(), sizes_J.tolist(), strict=True)):
            if (spelled := self.of([i])) is not None and len(spelled) == size:
                result[j, :size] = spelled
        return result

    def several(self, tuples_JM):
        return end_to_end([self.of(ids) for ids in tuples_JM.tolist()])


def signals_of(logits_NV, signals, mass):
    num_rows, vocab = logits_NV.shape
    truth_N = torch.zeros(num_rows, dtype=torch.int64)
    return row_signals(logits_NV, torch.eye(vocab), truth_N, torch.full((num_rows,), mass), signals, 5)


def all_tuples(logits_MV):
    """Every tuple over the positions with its log-prob, likeliest first."""
    logp_MV = logits_MV.double().log_softmax(dim=1)
    scored = [
        (sum(float(logp_V[i]) for logp_V, i in zip(logp_MV, ids, strict=True)), ids)
        for ids in product(range(logits_MV.shape[1]), repeat=len(logits_MV))
    ]
    return sorted(scored, reverse=True)


def best_tuples(rows_GM, rows, signals):
    """The likeliest tuples over the positions of each chunk, as one forward tells them: ids, log-probs, tail."""
    return _cut(_best([_lists(rows, row_G) for row_G in rows_GM.T], signals), signals)


@few
@given(
    seed=st.integers(0, 999), size=st.integers(1, 3), chunk_k=st.integers(1, 8), top_p=st.sampled_from([0.5, 0.9, 1.0])
)
def test_the_likeliest_tuples_are_found_and_all_others_are_in_the_tail(seed, size, chunk_k, top_p):
    logits_NV = 2 * torch.randn(2 * size, VOCAB, generator=torch.Generator().manual_seed(seed))
    signals = SignalsConfig(kinds=KINDS, temperatures=TEMPERATURES, top_k=VOCAB, top_p=top_p, chunk_k=chunk_k)
    rows = signals_of(logits_NV, signals, top_p if size == 1 else 1.0)
    tuples_GJM, logprobs_GJ, log_tail_GT = best_tuples(np.arange(2 * size).reshape(2, size), rows, signals)
    for g in range(2):
        every = all_tuples(logits_NV[g * size : (g + 1) * size])
        kept = logprobs_GJ[g] > -np.inf
        found = list(map(tuple, tuples_GJM[g, kept].tolist()))
        assert found == [ids for _, ids in every[: len(found)]]
        assert logprobs_GJ[g, kept].tolist() == pytest.approx([logprob for logprob, _ in every[: len(found)]], abs=1e-5)
        mass = np.exp(logprobs_GJ[g, kept])
        assert mass[:-1].sum() < top_p + 1e-6
        assert mass.sum() >= top_p - 1e-6 or len(found) == (chunk_k if size > 1 else VOCAB)
        for index, temperature in enumerate(TEMPERATURES):
            rest = sum(np.exp(logprob / temperature) for logprob, _ in every[len(found) :])
            assert np.exp(log_tail_GT[g, index]) == pytest.approx(rest, rel=1e-4, abs=1e-9)


@few
@given(seed=st.integers(0, 999), num_ids=st.integers(1, 12), chunk_k=st.integers(1, 20))
def test_equally_likely_tuples_come_by_the_ranks_of_their_ids(seed, num_ids, chunk_k):
    """As sorting all pairs of prefix and last id gives them, though only those that can be kept are looked at."""
    logits_NV = torch.randint(0, 3, (2, 12), generator=torch.Generator().manual_seed(seed)).float()
    signals = SignalsConfig(kinds=KINDS, temperatures=TEMPERATURES, top_k=num_ids, top_p=1.0, chunk_k=chunk_k)
    rows = signals_of(logits_NV, signals, 1.0)
    tuples_GJM, logprobs_GJ, log_tail_GT = best_tuples(np.array([[0, 1]]), rows, signals)
    first_K, last_K = rows.logprobs_NK.numpy().astype(np.float64)
    every_X = (first_K[:, None] + last_K).ravel()
    order_X = np.argsort(-every_X, kind="stable")
    ids_K2 = rows.ids_NK.numpy()
    ranks = [divmod(x, num_ids) for x in order_X[:chunk_k].tolist()]
    assert tuples_GJM[0].tolist() == [[ids_K2[0, i], ids_K2[1, j]] for i, j in ranks]
    assert np.array_equal(logprobs_GJ[0], every_X[order_X[:chunk_k]])
    for index, temperature in enumerate(TEMPERATURES):
        one_N, tail_N = (
            np.exp(x.numpy()[:, index].astype(np.float64)) for x in (rows.log_partition_NT, rows.log_tail_NT)
        )
        outside = tail_N[0] * one_N[1] + np.exp(first_K / temperature).sum() * tail_N[1]
        rest = outside + np.exp(every_X[order_X[chunk_k:]] / temperature).sum()
        assert np.exp(log_tail_GT[0, index]) == pytest.approx(rest, rel=1e-12, abs=1e-300)


def chunks_of(sizes, student_ids):
    """Chunks that follow each other in the rows, each spelled by the given true student tokens."""
    sizes = np.array(sizes, np.int32)
    return AskedChunks(
        index_A=np.arange(len(sizes), dtype=np.int32),
        first_row_A=(np.cumsum(sizes) - sizes).astype(np.int32),
        teacher_size_A=sizes,
        student_size_A=np.array([len(ids) for ids in student_ids], np.int32),
        student_ids_F=np.array([i for ids in student_ids for i in ids], np.int32),
    )


def by_chunk(candidates, sizes):
    """Student ids and log-probs of the candidates of each chunk."""
    result, at, token_at = [], 0, 0
    for count, size in zip(candidates.counts_A.tolist(), sizes, strict=True):
        ids = candidates.ids_F[token_at : token_at + count * size].reshape(count, size)
        result.append(dict(zip(map(tuple, ids.tolist()), candidates.logprobs_J[at : at + count].tolist(), strict=True)))
        at, token_at = at + count, token_at + count * size
    assert (at, token_at) == (len(candidates.logprobs_J), len(candidates.ids_F))
    return result


def whole(candidates):
    """Mass of candidates and tail of each chunk at T = 1."""
    owner = np.repeat(np.arange(len(candidates.counts_A)), candidates.counts_A)
    kept = np.bincount(owner, weights=np.exp(candidates.logprobs_J), minlength=len(candidates.counts_A))
    return kept + np.exp(candidates.log_tail_AT[:, 0])


def test_what_cannot_be_spelled_in_the_chunks_size_is_tail():
    logits_NV = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    signals = SignalsConfig(kinds=KINDS, temperatures=TEMPERATURES, top_k=VOCAB, top_p=1.0, chunk_k=VOCAB**2)
    rows = signals_of(logits_NV, signals, 1.0)
    chunks = chunks_of([1, 2], [(10,), (10, 11)])
    speller = Speller({0: None, 1: (7, 8), 2: (9,)})
    candidates = chunk_candidates(ChunkRows(chunks, np.full(3, 5, np.int32), rows, signals), speller)
    single, double = by_chunk(candidates, [1, 2])
    logp_NV = logits_NV.log_softmax(dim=1)
    assert set(single) == {(9,), (3,), (4,), (10,)}  # 5 is the true token: its own spelling is 10
    assert single[(9,)] == pytest.approx(float(logp_NV[0, 2]), abs=1e-5)
    assert {ids for ids in double if 7 in ids} == set()  # (1, x) takes three tokens, (0, x) none
    assert len(double) == 16  # pairs of 2, 3, 4, 5
    assert double[(10, 11)] == pytest.approx(float(logp_NV[1, 5] + logp_NV[2, 5]), abs=1e-5)
    assert whole(candidates).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_of_two_tuples_that_are_spelled_alike_the_likelier_is_the_candidate():
    logits_NV = torch.tensor([[0.0, 1.0, 2.0]])
    signals = SignalsConfig(kinds=KINDS, temperatures=TEMPERATURES, top_k=3, top_p=1.0, chunk_k=4)
    rows = signals_of(logits_NV, signals, 1.0)
    said = ChunkRows(chunks_of([1], [(0,)]), np.zeros(1, np.int32), rows, signals)
    candidates = chunk_candidates(said, Speller({1: (7,), 2: (7,)}))
    (found,) = by_chunk(candidates, [1])
    logp_V = logits_NV.log_softmax(dim=1)[0]
    assert found == pytest.approx({(7,): float(logp_V[2]), (0,): float(logp_V[0])}, abs=1e-6)
    assert candidates.log_tail_AT[0].tolist() == pytest.approx([float(logp_V[1]), float(logp_V[1]) / 2], abs=1e-5)


def test_a_chunk_may_have_no_candidate_at_all():
    signals = SignalsConfig(kinds=KINDS, temperatures=TEMPERATURES, top_k=3, top_p=1.0, chunk_k=4)
    rows = signals_of(torch.zeros(3, 3), signals, 1.0)
    nothing = Speller(dict.fromkeys(range(3)))
    said = ChunkRows(chunks_of([1, 2], [(0, 1), (0,)]), np.array([0, 1, 9]), rows, signals)
    candidates = chunk_candidates(said, nothing)
    assert by_chunk(candidates, [2, 1]) == [{(0, 1): pytest.approx(np.log(1 / 3))}, {}]
    assert candidates.log_tail_AT[1].tolist() == pytest.approx(candidates.log_partition_AT[1].tolist(), abs=1e-6)


def plainly(said, speller):
    """Candidates of each chunk in the order of the chunks, one by one: ids, log-probs and tail."""
    for first, size, asked, own in zip(
        said.chunks.first_row_A,
        said.chunks.teacher_size_A,
        said.chunks.student_size_A,
        np.split(said.chunks.student_ids_F, np.cumsum(said.chunks.student_size_A)[:-1]),
        strict=True,
    ):
        rows_M = np.arange(first, first + size)
        tuples_GJM, logprobs_GJ, tail_GT = best_tuples(rows_M[None], said.rows, said.signals)
        found, tail_T = {}, tail_GT[0]
        for ids, logprob in zip(map(tuple, tuples_GJM[0].tolist()), logprobs_GJ[0], strict=True):
            spelled = tuple(own.tolist()) if ids == tuple(said.true_ids_N[rows_M].tolist()) else speller.of(ids)
            if logprob == -np.inf:
                continue
            if spelled is None or len(spelled) != asked or spelled in found:
                tail_T = np.logaddexp(tail_T, logprob / np.array(TEMPERATURES))
            else:
                found[spelled] = np.float32(logprob)
        yield found, tail_T.astype(np.float32)


@few
@given(seed=st.integers(0, 999), top_p=st.sampled_from([0.6, 1.0]))
def test_a_batch_of_chunks_is_spelled_as_each_alone_to_the_bit(seed, top_p):
    random = np.random.default_rng(seed)
    teacher_sizes, student_sizes = random.integers(1, 4, (2, 9))
    num_rows = int(teacher_sizes.sum())
    logits_NV = 2 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    signals = SignalsConfig(kinds=KINDS, temperatures=TEMPERATURES, top_k=VOCAB - 1, top_p=top_p, chunk_k=7)
    chunks = chunks_of(teacher_sizes, [random.integers(0, 4, size) for size in student_sizes])
    said = ChunkRows(chunks, random.integers(0, VOCAB, num_rows), signals_of(logits_NV, signals, top_p), signals)
    speller = Speller({0: None, 1: (2,), 2: (3, 4), 3: (3, 4), 4: (2,)})
    candidates = chunk_candidates(said, speller)
    expected = list(plainly(said, speller))
    assert by_chunk(candidates, student_sizes) == [found for found, _ in expected]
    assert np.array_equal(candidates.log_tail_AT, [tail_T for _, tail_T in expected])


MASK_ID, SEED = 159, 1
VIEWS = ViewsConfig(num_views=3, seed=SEED, time_sampling="stratified", schedule="linear", complementary=False)
SETTINGS = CaptureSettings(
    context="block", block_size=4, mask_id=MASK_ID, shared_vocab_size=160, views_per_forward=2, batch_tokens=120,
    head_rows=16, seed=SEED,
    signals=SignalsConfig(KINDS, top_k=5, top_p=0.9, temperatures=TEMPERATURES, tail_samples=3, chunk_k=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(shared):
    backbone = load_backbone(read_checkpoint(str(shared / "golden/models/a2d_qwen3_tiny")), torch.float32, "cpu")
    return Teacher(backbone, SETTINGS, Speller()), Teacher(backbone, replace(SETTINGS, batch_tokens=1), Speller())


def drawn(samples):
    return [[draw_view(pair, view, VIEWS) for view in range(VIEWS.num_views)] for pair in samples]


def assert_same_chunks(found, expected):
    assert np.array_equal(found.chunks_A, expected.chunks_A)
    assert np.array_equal(found.counts_A, expected.counts_A)
    for name in ("logprobs_J", "log_tail_AT", "log_partition_AT"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5)


@few
@given(samples=st.lists(pairs(vocab=MASK_ID), min_size=1, max_size=3))
def test_every_active_chunk_has_an_entry_whatever_shares_its_forward(teacher, samples):
    together, alone = teacher
    views = drawn(samples)
    for pair, of_sample, signals in zip(samples, views, together.signals(samples, views), strict=True):
        for view, signal in zip(of_sample, signals, strict=True):
            assert signal.chunks.chunks_A.tolist() == np.flatnonzero(active_chunks(pair, view)).tolist()
            assert whole(signal.chunks).tolist() == pytest.approx([1] * len(signal.chunks.counts_A), abs=1e-4)
            assert_same_chunks(signal.chunks, alone.signals([pair], [[view]])[0][0].chunks)


@pytest.mark.parametrize("demo_ratio", [0.0, 0.5, 1.0])
@few
@given(samples=st.lists(pairs(vocab=MASK_ID), min_size=1, max_size=3))
def test_the_compdemo_pass_speaks_of_the_same_chunks(teacher, demo_ratio, samples):
    views = drawn(samples)
    plain = teacher[0].signals(samples, views)
    demonstrated = compdemo_signals(teacher[0], samples, views, SEED, demo_ratio)
    for of_sample, others in zip(plain, demonstrated, strict=True):
        for one, other in zip(of_sample, others, strict=True):
            assert np.array_equal(one.chunks.chunks_A, other.chunks.chunks_A)
            assert whole(other.chunks).tolist() == pytest.approx([1] * len(other.chunks.counts_A), abs=1e-4)
            if demo_ratio != 0.5:
                assert_same_chunks(other.chunks, one.chunks)
                np.testing.assert_array_equal(other.topk.tail.ids_S, one.topk.tail.ids_S)


@few
@given(samples=st.lists(pairs(vocab=MASK_ID), min_size=1, max_size=3))
def test_ids_drawn_from_tails_are_not_kept_ones_and_do_not_depend_on_the_batch(teacher, samples):
    views = drawn(samples)
    for pair, of_sample, signals in zip(samples, views, teacher[0].signals(samples, views), strict=True):
        for view, signal in zip(of_sample, signals, strict=True):
            topk, tail = signal.topk, signal.topk.tail
            owner_S = np.repeat(np.arange(len(tail.counts_R)), tail.counts_R)
            assert np.bincount(owner_S, weights=tail.draws_S, minlength=len(topk.rows_R)).tolist() == [3] * len(
                topk.rows_R
            )
            owner_E = np.repeat(np.arange(len(topk.rows_R)), topk.counts_R)
            kept = set(zip(owner_E.tolist(), topk.ids_E.tolist(), strict=True))
            assert kept.isdisjoint(zip(owner_S.tolist(), tail.ids_S.tolist(), strict=True))
            again = teacher[1].signals([pair], [[view]])[0][0].topk.tail
            assert np.array_equal(tail.ids_S, again.ids_S)
