"""Block sampling: equal to a loop anyone can read, whatever the batch, and consistent with how students are trained."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache.errors import RunFileError
from tide_cache.evaluation import generate, generate_text
from tide_cache.evaluation.sampler import masked_row_logits
from tide_cache.modeling.attention import block_diffusion_mask
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.packing import PackedInput, pack_block
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message

MASK, PAD, BLOCK = 39, 38, 4
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [], [5, 3, 5, 8], [9, 7], [9, 3, 2, 3, 8, 4, 6, 2, 6]]
OPTIONS = {"mask_id": MASK, "pad_id": PAD, "stop_ids": (), "block_size": BLOCK, "max_new_tokens": 10}
FIXTURE_IS_CONSTANT = [HealthCheck.function_scoped_fixture]


def plain_loop(backbone, prompt, steps_per_block, max_new_tokens=10):
    """One sequence, full logits of the whole sequence, the block-causal mask as the clean half of the golden one."""
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens:
        start = len(ids) // BLOCK * BLOCK
        ids += [None] * (start + BLOCK - len(ids))
        length = len(ids)
        is_allowed = block_diffusion_mask(length, BLOCK)[length:, length:]
        for steps_left in range(steps_per_block, 0, -1):
            open_places = [place for place, token in enumerate(ids) if token is None]
            if not open_places:
                break
            tokens = torch.tensor([[MASK if token is None else token for token in ids]])
            with torch.no_grad():
                hidden = backbone(PackedInput(tokens, torch.arange(length)[None], is_allowed[None, None]))[0]
            logits = hidden @ backbone.head_VD.T
            logits[:, [MASK, PAD]] = -math.inf
            best = {place: logits[place].softmax(0).max(0) for place in open_places}
            surest = sorted(open_places, key=lambda place: -best[place].values.item())
            for place in surest[: math.ceil(len(open_places) / steps_left)]:
                ids[place] = best[place].indices.item()
    return ids[len(prompt) :][:max_new_tokens]


@pytest.mark.parametrize("steps_per_block", [1, 3, BLOCK])
def test_it_equals_the_plain_loop(backbone, steps_per_block):
    got = generate(backbone, PROMPTS, steps_per_block=steps_per_block, **OPTIONS)
    assert got == [plain_loop(backbone, prompt, steps_per_block) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in got}) == len(PROMPTS), "the outputs should depend on the prompts"


@settings(max_examples=10, deadline=None, suppress_health_check=FIXTURE_IS_CONSTANT)
@given(
    prompts=st.lists(st.lists(st.integers(0, 37), max_size=11), max_size=6),
    steps_per_block=st.integers(1, BLOCK),
    batch_size=st.integers(1, 4),
)
def test_a_batch_gives_what_its_prompts_give_one_by_one(backbone, prompts, steps_per_block, batch_size):
    together = generate(backbone, prompts, steps_per_block=steps_per_block, batch_size=batch_size, **OPTIONS)
    alone = [generate(backbone, [prompt], steps_per_block=steps_per_block, **OPTIONS)[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("steps_per_block", [1, 3, BLOCK])
def test_every_block_takes_its_steps(backbone, steps_per_block):
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    generate(backbone, [[], [1, 2, 3, 4]], steps_per_block=steps_per_block, **OPTIONS | {"max_new_tokens": 8})
    num_blocks = 3  # at 0 for the first, at 4 for both, at 8 for the second
    assert len(calls) == num_blocks * steps_per_block


def test_one_model_serves_training_and_sampling(shared):
    """The published student's x_t block after [x_t, x_0] equals the same block after its clean prefix alone."""
    folder = shared / "golden/models/a2d_qwen3_tiny"
    io = np.load(folder / "io.npz")
    backbone = load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
    x_0_BL, x_t_BL = (torch.from_numpy(io[name]).long() for name in ("x0", "xt"))
    block_size, length = int(io["block_size"]), x_0_BL.shape[1]
    assert length > 2 * block_size
    with torch.no_grad():
        packed = pack_block(x_t_BL[:, None], x_0_BL, torch.ones_like(x_0_BL, dtype=torch.bool), block_size)
        trained_BLV = backbone(packed)[:, :length] @ backbone.head_VD.T
        for start in range(0, length, block_size):
            end = min(start + block_size, length)
            ids_BS = torch.cat([x_0_BL[:, :start], x_t_BL[:, start:end]], dim=1)
            is_row_BS = (torch.arange(end) >= start).expand(len(ids_BS), -1)
            sampled = masked_row_logits(backbone, ids_BS, is_row_BS, block_size).view(len(ids_BS), end - start, -1)
            torch.testing.assert_close(sampled, trained_BLV[:, start:end], atol=1e-5, rtol=0)
            np.testing.assert_allclose(sampled, io["logits_block"][:, start:end], atol=1e-5)


def cut(tokens, stop):
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


@settings(max_examples=15, deadline=None, suppress_health_check=FIXTURE_IS_CONSTANT)
@given(stop=st.integers(0, 37))
def test_a_stop_id_cuts_and_changes_nothing_before_it(backbone, stop):
    free = generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS)
    assert generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS | {"stop_ids": {stop}}) == [
        cut(tokens, stop) for tokens in free
    ]


def favourite(backbone):
    """The token that the model produces most."""
    tokens = [token for answer in generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS) for token in answer]
    return max(set(tokens), key=tokens.count)


def test_a_stopped_sequence_costs_no_further_forward(backbone):
    calls = []
    free = generate(backbone, [[]], steps_per_block=1, **OPTIONS)[0]
    stop = free[1]
    backbone.register_forward_hook(lambda *_: calls.append(1))
    assert generate(backbone, [[]], steps_per_block=1, **OPTIONS | {"stop_ids": [stop]}) == [cut(free, stop)]
    assert len(calls) == 1


def test_a_stop_id_in_the_prompt_does_not_stop(backbone):
    free = generate(backbone, [[7, 7]], steps_per_block=2, **OPTIONS)[0]
    assert generate(backbone, [[7, 7]], steps_per_block=2, **OPTIONS | {"stop_ids": {7}}) == [cut(free, 7)]


@pytest.mark.parametrize("name", ["mask_id", "pad_id"])
def test_mask_and_padding_are_never_produced(backbone, name):
    wanted = favourite(backbone)
    got = generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS | {name: wanted})
    assert all(len(tokens) == OPTIONS["max_new_tokens"] and wanted not in tokens for tokens in got)


def test_padding_that_is_the_stop_id_still_stops(backbone):
    pad = favourite(backbone)
    free = generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS | {"pad_id": MASK})
    got = generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS | {"pad_id": pad, "stop_ids": {pad}})
    assert got == [cut(tokens, pad) for tokens in free]
    assert got != free


def test_temperature_draws_from_the_tempered_distribution(backbone):
    temperature, num_draws = 3.0, 4000
    options = OPTIONS | {"block_size": 1, "max_new_tokens": 1}
    drawn = generate(
        backbone, [[5, 6]] * num_draws, steps_per_block=1, temperature=temperature, batch_size=1000, **options
    )
    with torch.no_grad():
        ids = torch.tensor([[5, 6, MASK]])
        logits = masked_row_logits(backbone, ids, ids == MASK, 1)[0]
    logits[[MASK, PAD]] = -math.inf
    probs = (logits / temperature).softmax(0).numpy()
    counts = np.bincount([tokens[0] for tokens in drawn], minlength=len(probs))
    spread = np.sqrt(num_draws * probs * (1 - probs)) + 1e-9
    assert (np.abs(counts - num_draws * probs) < 5 * spread + 1).all()
    assert (probs > 0.05).sum() >= 2, "the distribution should not be trivial"


@pytest.mark.parametrize("random_options", [{"temperature": 2.0}, {"remasking": "random"}])
def test_randomness_comes_from_the_generator_alone(backbone, random_options):
    def run(seed):
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return generate(backbone, PROMPTS, steps_per_block=2, generator=generator, **OPTIONS, **random_options)

    assert run(7) == run(7)
    assert run(None) == run(0)
    assert len({str(run(seed)) for seed in range(4)}) > 1
    assert all(MASK not in tokens and len(tokens) == 10 for tokens in run(1))


def test_remasking_does_not_matter_when_all_is_committed_at_once(backbone):
    surest, anyhow = (
        generate(backbone, PROMPTS, steps_per_block=1, remasking=remasking, **OPTIONS)
        for remasking in ("low_confidence", "random")
    )
    assert surest == anyhow


def test_blocks_are_told_as_they_come(backbone):
    told = {}
    got = generate(
        backbone,
        PROMPTS,
        steps_per_block=2,
        on_block=lambda index, tokens: told.setdefault(index, []).append(list(tokens)),
        **OPTIONS,
    )
    for index, tokens in enumerate(got):
        assert told[index][-1] == tokens
        assert all(
            later[: len(earlier)] == earlier for earlier, later in zip(told[index], told[index][1:], strict=False)
        )
    assert len(told[0]) == 3  # 5 prompt tokens: 3 fit in the second block, then 4, then 3


def test_the_models_mode_is_kept(backbone):
    backbone.train()
    generate(backbone, PROMPTS, steps_per_block=1, **OPTIONS)
    assert backbone.training


def test_impossible_options_are_refused_together(backbone):
    backbone.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(RunFileError) as caught:
        generate(
            backbone,
            [[1]],
            steps_per_block=5,
            temperature=-0.5,
            batch_size=0,
            **OPTIONS | {"max_new_tokens": 0},
        )
    message = str(caught.value)
    assert "max_new_tokens is 0; expected at least 1" in message
    assert "steps_per_block is 5; expected 1 to block_size, which is 4" in message
    assert "temperature is -0.5; expected 0 (most likely token) or more" in message
    assert "batch_size is 0" in message
    for options in ({"block_size": 0}, {"steps_per_block": 0}, {"temperature": math.nan}):
        with pytest.raises(RunFileError, match=rf"{next(iter(options))} is"):
            generate(backbone, [[1]], **{"steps_per_block": 1, **OPTIONS, **options})


def test_a_context_above_the_models_limit_is_refused_before_any_forward(backbone):
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(
        RunFileError,
        match=r"longest prompt has 39 tokens, with 10 new ones in whole blocks of 4 that needs 52 positions, "
        r"the model's limit is 48; lower max_new_tokens",
    ):
        generate(backbone, [[1], [1] * 39], steps_per_block=1, **OPTIONS)
    assert not calls
    assert len(generate(backbone, [[1] * 38], steps_per_block=1, **OPTIONS)[0]) == 10


def test_conversations_are_answered_in_text(tmp_path, make_backbone):
    tokenizer = TextTokenizer.load(str(train_vocabularies(tmp_path, seed=0).first))
    backbone = make_backbone(vocab=tokenizer.vocab_size)
    conversations = [[Message("user", "copy: abc")], [Message("user", "add: 2 and 3")]]
    options = {"block_size": BLOCK, "max_new_tokens": 8, "steps_per_block": 2}
    specials = set(tokenizer.is_special_V.nonzero()[0].tolist())
    want = [
        generate(
            backbone,
            [tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True).text).ids_L.tolist()],
            mask_id=tokenizer.mask_id,
            pad_id=tokenizer.pad_id,
            stop_ids=specials,
            **options,
        )[0]
        for messages in conversations
    ]
    answers = generate_text(backbone, tokenizer, conversations, **options)
    assert answers == [tokenizer.decode(ids) for ids in want]
    assert any(answers)
