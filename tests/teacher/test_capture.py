"""The teacher on packed, batched views says what it says of one view at a time, or names the view that broke it."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from benchmarks.gpu.material import SameIds
from helpers.pair_examples import one_to_one, pairs
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.errors import TeacherOutputError
from tide_cache.modeling.backbone import load_backbone, new_backbone, read_checkpoint
from tide_cache.records import MaskedView, SampleId, SamplePair
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views import draw_view

MASK_ID, VOCAB = 159, 160
TEMPERATURES = (1.0, 2.0)
VIEWS = ViewsConfig(num_views=3, seed=1, time_sampling="stratified", schedule="linear", complementary=False)
SETTINGS = CaptureSettings(
    context="block",
    block_size=4,
    mask_id=MASK_ID,
    shared_vocab_size=VOCAB,
    views_per_forward=3,
    batch_tokens=10_000,
    head_rows=16,
    signals=SignalsConfig(temperatures=TEMPERATURES, top_k=VOCAB, top_p=1.0),
)
CONTEXTS = ("full", "block")
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def backbone(shared):
    return load_backbone(read_checkpoint(str(shared / "golden/models/a2d_qwen3_tiny")), torch.float32, "cpu")


STOCK = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}


@pytest.fixture(scope="module", params=["llada2_moe", *STOCK])
def backbone_of_every_kind(request, shared):
    if request.param == "llada2_moe":
        return load_backbone(read_checkpoint(str(shared / "golden/models/llada2_tiny")), torch.float32, "cpu")
    config = STOCK[request.param](
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return new_backbone(config, torch.float32, "cpu", seed=0)


@pytest.mark.parametrize(
    "kinds", [("truth",), ("truth", "topk"), ("truth", "chunks"), ("truth", "chunks", "projected")]
)
@pytest.mark.parametrize("chunk_passes", [0, 2])
@pytest.mark.parametrize("context", ["full", "block"])
def test_a_forward_may_show_views_without_a_masked_token(kinds, chunk_passes, context):
    """A small t masks none of a short answer; in a vocabulary of many segments this once had no shape."""
    config = STOCK["qwen3"](
        vocab_size=1200, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    asked = SignalsConfig(kinds=kinds, temperatures=TEMPERATURES, top_k=2, top_p=1.0, chunk_passes=chunk_passes)
    plan = replace(SETTINGS, context=context, signals=asked, mask_id=1199, shared_vocab_size=1200)
    teacher = Teacher(new_backbone(config, torch.float32, "cpu", seed=0), plan, SameIds(1200))
    samples = [one_to_one(name, 8, 1200) for name in "ab"]
    nothing = [[MaskedView(pair.sample_id, 0, 0.01, *np.zeros((2, 8), bool))] for pair in samples]
    for views in (nothing, [nothing[0], drawn(samples)[1][:1]]):
        said = teacher.signals(samples, views)
        assert [len(signal.truth_logprobs_N) for (signal,) in said] == [
            int(view.is_teacher_masked_M.sum()) for (view,) in views
        ]


def drawn(samples, views=VIEWS):
    return [[draw_view(pair, view, views) for view in range(views.num_views)] for pair in samples]


def naive_logprobs(backbone, pair, view, context, block_size):
    """Every position of one view alone: token by token mask, stock model with its own head."""
    length = len(pair.teacher_ids_M)
    x_t = np.where(view.is_teacher_masked_M, MASK_ID, pair.teacher_ids_M).tolist()
    ids, positions = x_t, list(range(length))
    allowed = [[True] * length for _ in range(length)]
    if context == "block":
        ids, positions = x_t + pair.teacher_ids_M.tolist(), positions * 2
        allowed = [
            [
                (positions[q] // block_size == positions[k] // block_size and (q < length) == (k < length))
                or (k >= length and positions[k] // block_size < positions[q] // block_size)
                for k in range(2 * length)
            ]
            for q in range(2 * length)
        ]
    with torch.no_grad():
        output = backbone.model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=torch.tensor(allowed)[None, None],
            use_cache=False,
        )
    return output.logits[0, :length].double().log_softmax(dim=1)


@pytest.mark.parametrize("context", CONTEXTS)
@few
@given(samples=st.lists(pairs(vocab=MASK_ID, max_spans=4), min_size=1, max_size=3))
def test_signals_equal_one_plain_forward_per_view(backbone, context, samples):
    teacher = Teacher(backbone, replace(SETTINGS, context=context, views_per_forward=2, batch_tokens=60))
    views = drawn(samples)
    for pair, of_sample, signals in zip(samples, views, teacher.signals(samples, views), strict=True):
        is_pair_C = pair.is_aligned_pair_C(VOCAB) & pair.is_distillable_C
        pair_positions = set(pair.chunks_C4[is_pair_C, 0].tolist())
        for view, signal in zip(of_sample, signals, strict=True):
            positions = np.flatnonzero(view.is_teacher_masked_M)
            assert len(signal.truth_logprobs_N) == len(signal.is_top1_N) == len(positions)
            assert signal.topk.rows_R.tolist() == [n for n, at in enumerate(positions) if int(at) in pair_positions]
            if not len(positions):
                continue
            full_NV = naive_logprobs(backbone, pair, view, context, 4)[positions].numpy()
            truth_N = full_NV[np.arange(len(positions)), pair.teacher_ids_M[positions]]
            np.testing.assert_allclose(signal.truth_logprobs_N, truth_N, atol=1e-5)
            assert (truth_N[signal.is_top1_N] >= full_NV.max(axis=1)[signal.is_top1_N] - 1e-5).all()
            assert (truth_N[~signal.is_top1_N] < full_NV.max(axis=1)[~signal.is_top1_N] + 1e-5).all()
            kept = signal.topk.logprobs_E.reshape(-1, VOCAB)
            ids = signal.topk.ids_E.reshape(-1, VOCAB).astype(np.int64)
            wanted = np.take_along_axis(full_NV[signal.topk.rows_R], ids, axis=1)
            np.testing.assert_allclose(kept, wanted, atol=1e-5)
            partition = np.log(np.exp(full_NV[signal.topk.rows_R] / 2).sum(axis=1))
            np.testing.assert_allclose(signal.topk.log_partition_RT[:, 1], partition, atol=1e-5)


def assert_close(signals, others):
    for of_sample, of_other in zip(signals, others, strict=True):
        for signal, other in zip(of_sample, of_other, strict=True):
            np.testing.assert_allclose(signal.truth_logprobs_N, other.truth_logprobs_N, atol=1e-5)
            assert np.array_equal(signal.topk.rows_R, other.topk.rows_R)
            assert np.array_equal(signal.topk.counts_R, other.topk.counts_R)
            np.testing.assert_allclose(signal.topk.log_tail_RT, other.topk.log_tail_RT, atol=1e-5)
            np.testing.assert_allclose(signal.topk.log_partition_RT, other.topk.log_partition_RT, atol=1e-5)
            by_id = [
                dict(zip(topk.ids_E.tolist(), topk.logprobs_E.tolist(), strict=True))
                for topk in (signal.topk, other.topk)
            ]
            assert by_id[0] == pytest.approx(by_id[1], abs=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_packing_batching_and_slicing_change_nothing(backbone_of_every_kind, context):
    backbone = backbone_of_every_kind
    samples = [one_to_one(f"sample{length}", length, MASK_ID) for length in (9, 3, 14, 9, 6)]
    views = drawn(samples)
    settings = replace(SETTINGS, context=context, signals=SignalsConfig(temperatures=TEMPERATURES, top_k=4, top_p=1.0))
    one_at_a_time = replace(settings, views_per_forward=1, batch_tokens=1, head_rows=1)
    assert_close(
        Teacher(backbone, settings).signals(samples, views), Teacher(backbone, one_at_a_time).signals(samples, views)
    )


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_rerun_is_identical_to_the_bit(backbone, context):
    samples = [one_to_one(f"sample{length}", length, MASK_ID) for length in (9, 3, 14)]
    teacher = Teacher(backbone, replace(SETTINGS, context=context, batch_tokens=100))
    first, second = (teacher.signals(samples, drawn(samples)) for _ in range(2))
    for one, other in zip(chain(*first), chain(*second), strict=True):
        assert np.array_equal(one.truth_logprobs_N, other.truth_logprobs_N)
        assert np.array_equal(one.topk.logprobs_E, other.topk.logprobs_E)
        assert np.array_equal(one.topk.ids_E, other.topk.ids_E)


def test_contexts_differ(backbone):
    sample = [one_to_one("a", 12, MASK_ID)]
    full, block = (
        Teacher(backbone, replace(SETTINGS, context=context)).signals(sample, drawn(sample)) for context in CONTEXTS
    )
    assert not np.allclose(full[0][1].truth_logprobs_N, block[0][1].truth_logprobs_N, atol=1e-3)


def test_dtypes_are_those_of_the_records(backbone):
    sample = [one_to_one("a", 12, MASK_ID)]
    signal = Teacher(backbone, SETTINGS).signals(sample, drawn(sample))[0][2]
    assert signal.truth_logprobs_N.dtype == signal.topk.logprobs_E.dtype == np.float32
    assert signal.topk.log_tail_RT.dtype == signal.topk.log_partition_RT.dtype == np.float32
    assert signal.topk.rows_R.dtype == signal.topk.counts_R.dtype == np.int32
    assert signal.topk.ids_E.dtype == np.uint32
    assert signal.is_top1_N.dtype == np.bool_


def test_candidates_are_left_out_where_none_are_wanted(backbone):
    sample = [one_to_one("a", 12, MASK_ID)]
    settings = replace(SETTINGS, signals=SignalsConfig(kinds=("truth",), temperatures=(1.0,)))
    assert Teacher(backbone, settings).signals(sample, drawn(sample))[0][0].topk is None
    none_shared = Teacher(backbone, replace(SETTINGS, shared_vocab_size=0)).signals(sample, drawn(sample))[0][0]
    assert len(none_shared.truth_logprobs_N)
    assert len(none_shared.topk.rows_R) == len(none_shared.topk.ids_E) == 0
    assert none_shared.topk.log_tail_RT.shape == (0, 2)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("others", [[], [one_to_one("b", 5, MASK_ID)]])
def test_a_sample_without_teacher_tokens_says_nothing(backbone, context, others):
    empty = np.zeros(0, np.int32)
    alone = SamplePair(SampleId("a"), np.arange(5, dtype=np.int32), np.ones(5, bool), empty, empty.reshape(0, 4))
    signals = Teacher(backbone, replace(SETTINGS, context=context)).signals([alone, *others], drawn([alone, *others]))
    assert [signal.truth_logprobs_N.shape for signal in signals[0]] == [(0,)] * 3
    assert all(len(signal.truth_logprobs_N) for of_sample in signals[1:] for signal in of_sample[1:])


def test_views_without_a_masked_token_and_no_samples_at_all(backbone):
    shown = replace(one_to_one("a", 6, MASK_ID), is_supervised_L=np.zeros(6, bool))
    signals = Teacher(backbone, SETTINGS).signals([shown], drawn([shown]))
    assert [signal.truth_logprobs_N.shape for signal in signals[0]] == [(0,)] * 3
    assert Teacher(backbone, SETTINGS).signals([], []) == []


def test_progress_is_told_after_every_forward_and_may_stop_the_work(backbone):
    samples = [one_to_one(f"sample{length}", length, MASK_ID) for length in (9, 3, 14)]
    told = []
    Teacher(backbone, replace(SETTINGS, views_per_forward=2, batch_tokens=1)).signals(
        samples, drawn(samples), told.append
    )
    assert sorted(told) == [1, 1, 1, 2, 2, 2]

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Teacher(backbone, SETTINGS).signals(samples, drawn(samples), stop)


def broken_backbone(token):
    """Says NaN wherever it sees a token; with untied weights, so that nothing else is touched."""
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    backbone = new_backbone(config, torch.float32, "cpu", seed=0)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[token] = torch.nan
    return backbone


def test_output_that_is_not_finite_names_sample_and_view():
    """The bad token is masked in the first views and shown in a later one: that one is named."""
    good, bad = one_to_one("good", 7, 20), one_to_one("bad", 9, 20)
    bad.teacher_ids_M[4] = 77
    views = drawn([good, bad], replace(VIEWS, num_views=8))
    first_shown = next(
        view.view for view in views[1] if not view.is_teacher_masked_M[4] and view.is_teacher_masked_M.any()
    )
    assert first_shown > 0
    teacher = Teacher(broken_backbone(77), replace(SETTINGS, context="full"))
    with pytest.raises(TeacherOutputError) as raised:
        teacher.signals([good, bad], views)
    message = str(raised.value)
    assert f"not finite for sample 'bad', view {first_shown}" in message
    assert "nothing of this shard was published" in message
    assert "dtype = 'float32'" in message


def test_a_head_with_one_bad_row_is_noticed_though_no_truth_lies_there():
    sample = [one_to_one("a", 7, 20)]
    backbone = broken_backbone(77)
    with torch.no_grad():
        backbone.head_VD[150] = torch.nan
    with pytest.raises(TeacherOutputError, match="sample 'a', view"):
        Teacher(backbone, SETTINGS).signals(sample, drawn(sample))
