"""Each position's signal is what the teacher says of the partial view that masks it; nothing is lost or moved."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.pair_examples import one_to_one, pairs
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.errors import TeacherOutputError
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.views import draw_shown_first, draw_view, partial_views

MASK_ID, VOCAB, SEED = 159, 160, 1
VIEWS = ViewsConfig(num_views=3, seed=SEED, time_sampling="stratified", schedule="linear", complementary=False)
SETTINGS = CaptureSettings(
    context="block", block_size=4, mask_id=MASK_ID, shared_vocab_size=VOCAB, views_per_forward=2, batch_tokens=120,
    head_rows=16, signals=SignalsConfig(temperatures=(1.0, 2.0), top_k=5, top_p=0.9),
)  # fmt: skip
CONTEXTS = ("full", "block")
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def backbone(shared):
    return load_backbone(read_checkpoint(str(shared / "golden/models/a2d_qwen3_tiny")), torch.float32, "cpu")


def drawn(samples):
    return [[draw_view(pair, view, VIEWS) for view in range(VIEWS.num_views)] for pair in samples]


def by_position(view, signal):
    """Everything that is said of each masked position; ids are sorted, since equal log-probs come in any order."""
    positions = np.flatnonzero(view.is_teacher_masked_M).tolist()
    assert len(positions) == len(signal.truth_logprobs_N) == len(signal.is_top1_N)
    said = {at: [signal.truth_logprobs_N[row], signal.is_top1_N[row]] for row, at in enumerate(positions)}
    topk = signal.topk
    ends = np.cumsum(topk.counts_R)
    for r, row in enumerate(topk.rows_R):
        entries = slice(ends[r] - topk.counts_R[r], ends[r])
        kept = sorted(zip(topk.ids_E[entries].tolist(), topk.logprobs_E[entries].tolist(), strict=True))
        said[positions[row]] += [*chain(*kept), *topk.log_tail_RT[r], *topk.log_partition_RT[r]]
    return said


@pytest.mark.parametrize("context", CONTEXTS)
@few
@given(samples=st.lists(pairs(vocab=MASK_ID), min_size=1, max_size=3), demo_ratio=st.sampled_from([0.2, 0.5]))
def test_each_position_is_answered_by_the_partial_view_that_masks_it(backbone, context, samples, demo_ratio):
    views = drawn(samples)
    teacher = Teacher(backbone, replace(SETTINGS, context=context))
    alone = Teacher(backbone, replace(SETTINGS, context=context, views_per_forward=1, batch_tokens=1))
    signals = compdemo_signals(teacher, samples, views, SEED, demo_ratio)
    for pair, of_sample, answers in zip(samples, views, signals, strict=True):
        for view, signal in zip(of_sample, answers, strict=True):
            is_first_M = draw_shown_first(pair, view, SEED, demo_ratio)
            assert np.array_equal(signal.is_shown_first_N, is_first_M[view.is_teacher_masked_M])
            expected = {}
            for part in partial_views(view, is_first_M):
                expected |= by_position(part, alone.signals([pair], [[part]])[0][0])
            found = by_position(view, signal)
            assert found.keys() == expected.keys()
            for at, said in found.items():
                assert said == pytest.approx(expected[at], abs=1e-5), at
            assert (np.diff(signal.topk.rows_R) > 0).all()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("demo_ratio", [0.0, 1.0])
def test_without_a_demonstration_it_is_the_plain_pass_to_the_bit(backbone, context, demo_ratio):
    samples = [one_to_one(f"sample{length}", length, MASK_ID) for length in (9, 3, 14)]
    teacher, told, plain_told = Teacher(backbone, replace(SETTINGS, context=context)), [], []
    plain = teacher.signals(samples, drawn(samples), plain_told.append)
    demonstrated = compdemo_signals(teacher, samples, drawn(samples), SEED, demo_ratio, told.append)
    assert told == plain_told
    for one, other in zip(chain(*plain), chain(*demonstrated), strict=True):
        assert one.is_shown_first_N is None
        assert other.is_shown_first_N.tolist() == [bool(demo_ratio)] * len(one.truth_logprobs_N)
        for name in ("truth_logprobs_N", "is_top1_N"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert one.topk.tail is None
        for name, array in vars(one.topk).items():
            if name == "tail":
                continue
            assert np.array_equal(array, getattr(other.topk, name))
            assert array.dtype == getattr(other.topk, name).dtype


def test_a_demonstration_changes_what_the_teacher_says(backbone):
    sample = [one_to_one("a", 40, MASK_ID)]
    plain = Teacher(backbone, SETTINGS).signals(sample, drawn(sample))[0][2]
    demonstrated = compdemo_signals(Teacher(backbone, SETTINGS), sample, drawn(sample), SEED, 0.5)[0][2]
    assert set(demonstrated.is_shown_first_N.tolist()) == {False, True}
    assert not np.allclose(plain.truth_logprobs_N, demonstrated.truth_logprobs_N, atol=1e-3)


def test_progress_counts_the_partial_views_and_may_stop_the_work(backbone):
    samples = [one_to_one(f"sample{length}", length, MASK_ID) for length in (9, 3, 14)]
    views, told = drawn(samples), []
    compdemo_signals(Teacher(backbone, SETTINGS), samples, views, SEED, 0.5, told.append)
    parts = [
        len(partial_views(view, draw_shown_first(pair, view, SEED, 0.5)))
        for pair, of_sample in zip(samples, views, strict=True)
        for view in of_sample
    ]
    assert sum(told) == sum(parts)
    assert 9 < sum(parts) <= 18

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compdemo_signals(Teacher(backbone, SETTINGS), samples, views, SEED, 0.5, stop)


def test_views_that_mask_nothing_no_candidates_and_no_samples(backbone):
    shown = replace(one_to_one("a", 6, MASK_ID), is_supervised_L=np.zeros(6, bool))
    (signals,) = compdemo_signals(Teacher(backbone, SETTINGS), [shown], drawn([shown]), SEED, 0.5)
    assert [signal.is_shown_first_N.shape for signal in signals] == [(0,)] * 3
    assert [signal.topk.log_tail_RT.shape for signal in signals] == [(0, 2)] * 3
    teacher = Teacher(backbone, replace(SETTINGS, signals=SignalsConfig(kinds=("truth",), temperatures=(1.0,))))
    sample = [one_to_one("a", 6, MASK_ID)]
    assert compdemo_signals(teacher, sample, drawn(sample), SEED, 0.5)[0][2].topk is None
    assert compdemo_signals(teacher, [], [], SEED, 0.5) == []


def test_output_that_is_not_finite_names_sample_and_view(shared):
    sample = [one_to_one("bad", 9, 20)]
    broken = load_backbone(read_checkpoint(str(shared / "golden/models/a2d_qwen3_tiny")), torch.float32, "cpu")
    with torch.no_grad():
        broken.head_VD[150] = torch.nan
    with pytest.raises(TeacherOutputError, match="not finite for sample 'bad', view"):
        compdemo_signals(Teacher(broken, SETTINGS), sample, drawn(sample), SEED, 0.5)
