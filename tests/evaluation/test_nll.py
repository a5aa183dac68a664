"""Held-out NLL: right for a solvable model, equal to the plain computation, the same question for every model."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.bootstrap import bits_per_byte
from tide_cache.errors import ModelError, RunFileError
from tide_cache.evaluation import TIMES, held_out_nll
from tide_cache.modeling.attention import block_diffusion_mask
from tide_cache.modeling.packing import PackedInput
from tide_cache.records import SampleId, SamplePair
from tide_cache.views.random import KeyedRandom

VOCAB, MASK, PAD, BLOCK = 40, 39, 38, 4
OPTIONS = {"mask_id": MASK, "pad_id": PAD, "block_size": BLOCK}
LENGTHS = (9, 5, 16, 5, 12, 1)


def sample(index, length, first_supervised=1):
    random = np.random.default_rng(index)
    return SamplePair(
        SampleId(f"s{index}"),
        random.integers(0, PAD, length, dtype=np.int32),
        np.arange(length) >= first_supervised,
        np.zeros(0, np.int32),
        np.zeros((0, 4), np.int32),
    )


def samples():
    return [sample(index, length) for index, length in enumerate(LENGTHS)]


def plain_nll(backbone, pairs, t, place, seed, context):
    """One unpadded sample at a time, full logits of every position."""
    nll, right = [], []
    for pair in pairs:
        length = len(pair.student_ids_L)
        drawn = KeyedRandom("eval", seed, pair.sample_id, place).uniform(length) < t
        is_masked = torch.from_numpy(drawn & pair.is_supervised_L)
        x_0 = torch.from_numpy(pair.student_ids_L).long()
        x_t = torch.where(is_masked, MASK, x_0)
        if context == "block":
            ids, mask = torch.cat([x_t, x_0]), block_diffusion_mask(length, BLOCK)
        else:
            ids, mask = x_t, torch.ones(length, length, dtype=torch.bool)
        positions = torch.arange(length).repeat(len(ids) // length)
        with torch.no_grad():
            hidden = backbone(PackedInput(ids[None], positions[None], mask[None, None]))[0, :length]
        logprobs = (hidden @ backbone.head_VD.T).log_softmax(-1)[is_masked]
        nll += (-logprobs.gather(1, x_0[is_masked][:, None])).flatten().tolist()
        right += (logprobs.argmax(1) == x_0[is_masked]).tolist()
    return nll, right


@pytest.mark.parametrize("context", ["block", "full"])
def test_it_equals_the_plain_computation(backbone, context):
    times = (0.2, 0.6, 1.0)
    report = held_out_nll(backbone, samples(), times=times, seed=3, context=context, batch_tokens=64, **OPTIONS)
    for place, entry in enumerate(report.times):
        nll, right = plain_nll(backbone, samples(), entry.t, place, 3, context)
        assert entry.num_masked == len(nll) > 0
        assert entry.nll == pytest.approx(np.mean(nll), abs=1e-5)
        assert entry.accuracy == np.mean(right)
    assert report.mean_nll == pytest.approx(np.mean([entry.nll for entry in report.times]))
    assert report.mean_accuracy == pytest.approx(np.mean([entry.accuracy for entry in report.times]))
    assert (report.context, report.seed, report.num_samples) == (context, 3, len(LENGTHS))


def test_a_uniform_model_needs_log_v_nats_at_every_time(backbone):
    with torch.no_grad():
        backbone.head_VD.zero_()
    report = held_out_nll(backbone, samples(), num_bytes=100, **OPTIONS)
    assert [entry.t for entry in report.times] == list(TIMES)
    for entry in report.times:
        assert entry.nll == pytest.approx(math.log(VOCAB), rel=1e-6)
    num_supervised = sum(LENGTHS) - len(LENGTHS)
    assert report.num_supervised == num_supervised
    assert report.nats_per_byte == pytest.approx(math.log(VOCAB) * num_supervised / 100, rel=1e-6)


def test_sums_by_row_make_up_the_means(backbone):
    pairs, times = samples()[::-1], (0.4, 1.0)
    num_bytes = [7 + len(pair.student_ids_L) for pair in pairs]
    report = held_out_nll(backbone, pairs, times=times, num_bytes=num_bytes, by_row=True, **OPTIONS)
    rows = report.rows
    assert rows.sample_id == tuple(pair.sample_id for pair in pairs)
    for place, entry in enumerate(report.times):
        assert sum(masked[place] for masked in rows.num_masked) == entry.num_masked
        assert sum(nll[place] for nll in rows.nll) / entry.num_masked == pytest.approx(entry.nll)
    alone = held_out_nll(backbone, pairs[2:3], times=times, num_bytes=num_bytes[2:3], by_row=True, **OPTIONS)
    assert alone.rows.num_masked[0] == rows.num_masked[2]
    assert alone.rows.nll[0] == pytest.approx(rows.nll[2], abs=1e-4)
    whole = bits_per_byte(dataclasses.asdict(report), np.ones((1, len(pairs))))
    assert whole == pytest.approx([report.nats_per_byte / math.log(2)])
    assert dataclasses.replace(report, rows=None) == held_out_nll(
        backbone, pairs, times=times, num_bytes=sum(num_bytes), **OPTIONS
    )


def test_the_two_contexts_are_two_questions(backbone):
    block, full = (held_out_nll(backbone, samples(), context=name, **OPTIONS) for name in ("block", "full"))
    assert [entry.num_masked for entry in block.times] == [entry.num_masked for entry in full.times]
    assert block.mean_nll != pytest.approx(full.mean_nll, abs=1e-3)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(LENGTHS))), batch_tokens=st.integers(1, 2000))
def test_order_and_batches_do_not_matter(backbone, order, batch_tokens):
    pairs, times = samples(), (0.3, 0.9)
    want = held_out_nll(backbone, pairs, times=times, **OPTIONS)
    assert held_out_nll(backbone, [pairs[i] for i in order], times=times, **OPTIONS) == want
    got = held_out_nll(backbone, pairs, times=times, batch_tokens=batch_tokens, **OPTIONS)
    for one, other in zip(got.times, want.times, strict=True):
        assert one.num_masked == other.num_masked
        assert one.nll == pytest.approx(other.nll, abs=1e-5)


def test_the_seed_alone_decides_the_masks(backbone):
    torch.manual_seed(1)
    first = held_out_nll(backbone, samples(), seed=0, **OPTIONS)
    torch.manual_seed(2)
    assert held_out_nll(backbone, samples(), seed=0, **OPTIONS) == first
    assert held_out_nll(backbone, samples(), seed=1, **OPTIONS).mean_nll != first.mean_nll


def test_the_default_grid_is_the_mid_point_rule():
    edges = np.linspace(0, 1, len(TIMES) + 1)
    np.testing.assert_allclose(TIMES, (edges[:-1] + edges[1:]) / 2)


def test_a_time_without_a_masked_token_says_so(backbone):
    report = held_out_nll(backbone, samples(), times=(1e-9, 0.5), num_bytes=10, **OPTIONS)
    assert dataclasses.astuple(report.times[0]) == (1e-9, 0, None, None)
    assert report.times[1].nll is not None
    assert (report.mean_nll, report.mean_accuracy, report.nats_per_byte) == (None, None, None)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["times"][0]["nll"] is None


def test_only_supervised_tokens_are_masked(backbone):
    pairs = [sample(0, 8, first_supervised=8), sample(1, 8, first_supervised=6)]
    report = held_out_nll(backbone, pairs, times=(1.0,), **OPTIONS)
    assert report.times[0].num_masked == report.num_supervised == 2


def test_progress_is_told_and_the_mode_is_kept(backbone):
    told = []
    backbone.train()
    held_out_nll(
        backbone, samples(), batch_tokens=64, progress=lambda done, total: told.append((done, total)), **OPTIONS
    )
    assert backbone.training
    assert {total for _, total in told} == {len(LENGTHS) * len(TIMES)}
    assert told[-1][0] == len(LENGTHS) * len(TIMES)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_impossible_options_are_refused_together(backbone):
    with pytest.raises(RunFileError) as caught:
        held_out_nll(
            backbone, [], times=(0.0, 1.5), block_size=0, mask_id=MASK, pad_id=PAD, batch_tokens=0, num_bytes=0
        )
    message = str(caught.value)
    assert "0.0 is no diffusion time; expected 0 < t <= 1" in message
    assert "1.5 is no diffusion time" in message
    assert "there is no held-out sample" in message
    assert "block_size is 0; expected at least 1" in message
    assert "batch_tokens is 0" in message
    assert "num_bytes is 0" in message
    with pytest.raises(RunFileError, match="the grid of times is empty"):
        held_out_nll(backbone, samples(), times=(), **OPTIONS)


def test_a_sample_above_the_models_limit_is_refused_before_any_forward(backbone):
    backbone.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(RunFileError, match=r"sample 's7' has 49 tokens, the model's limit is 48; lower max_length"):
        held_out_nll(backbone, [sample(6, 3), sample(7, 49)], **OPTIONS)


def test_an_output_that_is_not_finite_is_named(backbone):
    with torch.no_grad():
        backbone.head_VD[7] = torch.nan
    with pytest.raises(ModelError, match=r"not finite for held-out sample 's\d' at t = 0.5"):
        held_out_nll(backbone, samples(), times=(0.5,), **OPTIONS)
