"""Decoding by confidence: equal to a loop anyone can read, over models, thresholds, steps and lengths."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tide_cache.decoding.step import keep_likeliest
from tide_cache.errors import RunFileError
from tide_cache.evaluation import DecodingCounts, generate
from tide_cache.modeling.attention import block_diffusion_mask
from tide_cache.modeling.packing import PackedInput

MASK, PAD, BLOCK, NEW = 39, 38, 4, 10
NEAR_TIE = 1e-4
"""Rounding decides below this difference of log-probabilities; such draws say nothing and are left out."""


def sdar(backbone, prompt, steps, threshold, stop=None):
    """SDAR's dynamic rule on one sequence, without a cache: tokens, forwards, and the closest call that was made."""
    ids, forwards, margin = list(prompt), 0, math.inf
    shares = [BLOCK // steps + (step < BLOCK % steps) for step in range(steps)]
    while len(ids) < len(prompt) + NEW:
        ids += [None] * (BLOCK - len(ids) % BLOCK)
        allowed = block_diffusion_mask(len(ids), BLOCK)[len(ids) :, len(ids) :]
        for share in shares:
            tokens = torch.tensor([[MASK if token is None else token for token in ids]])
            with torch.no_grad():
                hidden = backbone(PackedInput(tokens, torch.arange(len(ids))[None], allowed[None, None]))[0]
            logits = hidden @ backbone.head_VD.T
            logits[:, [MASK, PAD]] = -math.inf
            best = {place: logits[place].log_softmax(0).topk(2) for place, token in enumerate(ids) if token is None}
            forwards += 1
            sure = {place: top.values[0].item() for place, top in best.items()}
            order = sorted(sure, key=lambda place: -sure[place])
            above = [place for place in order if sure[place] > math.log(threshold)]
            kept = above if len(above) >= share else order[:share]
            margin = min([margin, *((top.values[0] - top.values[1]).item() for top in best.values())])
            margin = min([margin, *(abs(value - math.log(threshold)) for value in sure.values())])
            if len(kept) < len(order):
                margin = min(margin, sure[order[len(kept) - 1]] - sure[order[len(kept)]])
            for place in kept:
                ids[place] = best[place].indices[0].item()
            settled = ids[: ids.index(None)] if None in ids else ids
            if None not in ids or stop in settled[len(prompt) :]:
                break
        new = [token for token in ids[len(prompt) :] if token is not None]
        if stop in settled[len(prompt) :][:NEW]:
            return new[: new.index(stop)], forwards, margin
    return ids[len(prompt) :][:NEW], forwards, margin


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 200),
    prompts=st.lists(st.lists(st.integers(0, 37), max_size=9), min_size=1, max_size=4),
    steps=st.integers(1, BLOCK),
    threshold=st.sampled_from([0.05, 0.2, 0.5, 0.9, 1.0]),
    stop=st.one_of(st.none(), st.integers(0, 37)),
    use_cache=st.booleans(),
    batch_size=st.integers(1, 3),
)
def test_it_equals_the_plain_loop(make_backbone, seed, prompts, steps, threshold, stop, use_cache, batch_size):
    backbone = make_backbone(seed)
    want = [sdar(backbone, prompt, steps, threshold, stop) for prompt in prompts]
    assume(all(margin > NEAR_TIE for *_, margin in want))
    counts = DecodingCounts()
    got = generate(
        backbone, prompts, mask_id=MASK, pad_id=PAD, stop_ids=() if stop is None else {stop}, block_size=BLOCK,
        max_new_tokens=NEW, steps_per_block=steps, threshold=threshold, use_cache=use_cache, batch_size=batch_size,
        counts=counts,
    )  # fmt: skip
    assert got == [tokens for tokens, *_ in want]
    assert counts.forwards == sum(forwards for _, forwards, _ in want)
    assert counts.sequences == len(prompts)
    num_stopped = sum(len(tokens) < NEW for tokens in got)
    assert counts.tokens == sum(map(len, got)) + num_stopped


OPTIONS = {"mask_id": MASK, "pad_id": PAD, "stop_ids": (), "block_size": BLOCK, "max_new_tokens": 8}


def test_a_low_threshold_fills_a_block_at_once_and_a_high_one_takes_every_step(backbone):
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8]]
    for threshold, forwards in ((1e-9, 2), (1.0, 8)):
        counts = DecodingCounts()
        generate(backbone, prompts, steps_per_block=BLOCK, threshold=threshold, counts=counts, **OPTIONS)
        assert counts.forwards_per_sequence == forwards
        assert counts.tokens_per_forward == 8 / forwards
    assert counts.prefill_tokens == 2
    assert counts.tokens_per_s > 0


def test_counts_add_up_over_calls_and_begin_as_nan(backbone):
    counts = DecodingCounts()
    assert math.isnan(counts.tokens_per_forward)
    assert math.isnan(counts.forwards_per_sequence)
    assert math.isnan(counts.tokens_per_s)
    for _ in range(2):
        generate(backbone, [[1], [2, 3]], steps_per_block=2, counts=counts, **OPTIONS)
    assert (counts.sequences, counts.tokens) == (4, 32)


def test_a_stop_inside_a_block_saves_its_other_forwards(backbone):
    options = OPTIONS | {"max_new_tokens": BLOCK}
    (free,) = generate(backbone, [[]], steps_per_block=BLOCK, **options)
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    for stop in set(free):
        calls.clear()
        got = generate(backbone, [[]], steps_per_block=BLOCK, **options | {"stop_ids": [stop]})
        assert got == [free[: free.index(stop)]]


def test_top_k_and_top_p_keep_the_likeliest(backbone):
    logits = torch.log(torch.tensor([[0.5, 0.05, 0.3, 0.15]]))

    def kept(top_k=None, top_p=None):
        return keep_likeliest(logits, top_k, top_p).isfinite()[0].nonzero()[:, 0].tolist()

    assert kept() == kept(top_k=4) == kept(top_k=9) == kept(top_p=1.0) == [0, 1, 2, 3]
    assert kept(top_k=2) == kept(top_p=0.6) == kept(top_p=0.79) == [0, 2]
    assert kept(top_p=0.81) == kept(top_k=3) == [0, 2, 3]
    assert kept(top_p=1e-9) == kept(top_k=1) == [0]
    assert kept(top_k=2, top_p=0.63) == [0, 2]  # renormalised: .625 and .375
    assert kept(top_k=2, top_p=0.62) == [0]


def test_drawing_from_one_token_is_taking_the_likeliest(backbone):
    likeliest = generate(backbone, [[1, 2], []], steps_per_block=2, **OPTIONS)
    for one in ({"top_k": 1}, {"top_p": 1e-6}):
        assert generate(backbone, [[1, 2], []], steps_per_block=2, temperature=2.0, **one, **OPTIONS) == likeliest
    drawn = generate(backbone, [[1, 2], []], steps_per_block=2, temperature=5.0, top_k=20, **OPTIONS)
    assert drawn != likeliest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0; expected a probability above 0, and 1 at most"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"threshold": 0.5, "remasking": "random"}, "threshold needs remasking = low_confidence"),
        ({"top_k": 0, "temperature": 1.0}, "top_k is 0; expected at least 1"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0.0"),
        ({"top_k": 5}, "temperature 0 draws nothing; set a temperature"),
    ],
)
def test_what_cannot_be_is_refused(backbone, options, message):
    with pytest.raises(RunFileError, match=message):
        generate(backbone, [[1]], steps_per_block=1, **options, **OPTIONS)
