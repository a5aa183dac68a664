"""Block sampling: equal to a loop anyone can read, whatever the batch, and consistent with how students are trained."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tide_cache.decoding.block_context import BlockContext
from tide_cache.errors import RunFileError
from tide_cache.evaluation import generate
from tide_cache.modeling.attention import block_diffusion_mask
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.packing import PackedInput, pack_block

MASK, PAD, BLOCK = 39, 38, 4
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [], [5, 3, 5, 8], [9, 7], [9, 3, 2, 3, 8, 4, 6, 2, 6]]
OPTIONS = {"mask_id": MASK, "pad_id": PAD, "stop_ids": (), "block_size": BLOCK, "max_new_tokens": 10}
FIXTURE_IS_CONSTANT = [HealthCheck.function_scoped_fixture]


def plain_loop(backbone, prompt, steps_per_block, max_new_tokens=10, cfg_scale=0.0):
    """One sequence, full logits of the whole sequence, the block-causal mask as the clean half of the golden one."""

    def logits_of(tokens):
        with torch.no_grad():
            positions = torch.arange(length)[None]
            hidden = backbone(PackedInput(torch.tensor([tokens]), positions, is_allowed[None, None]))[0]
        return hidden @ backbone.head_VD.T

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
            tokens = [MASK if token is None else token for token in ids]
            logits = logits_of(tokens)
            if cfg_scale:
                without = logits_of([MASK] * len(prompt) + tokens[len(prompt) :])
                logits = without + (1 + cfg_scale) * (logits - without)
            logits[:, [MASK, PAD]] = -math.inf
            best = {place: logits[place].softmax(0).max(0) for place in open_places}
            surest = sorted(open_places, key=lambda place: -best[place].values.item())
            for place in surest[: math.ceil(len(open_places) / steps_left)]:
                ids[place] = best[place].indices.item()
    return ids[len(prompt) :][:max_new_tokens]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("steps_per_block", [1, 3, BLOCK])
def test_it_equals_the_plain_loop(backbone, steps_per_block, use_cache):
    got = generate(backbone, PROMPTS, steps_per_block=steps_per_block, use_cache=use_cache, **OPTIONS)
    assert got == [plain_loop(backbone, prompt, steps_per_block) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in got}) == len(PROMPTS), "the outputs should depend on the prompts"


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("cfg_scale", [0.5, 3.0])
def test_guidance_equals_the_plain_loop(backbone, cfg_scale, use_cache):
    options = OPTIONS | {"steps_per_block": 2}
    got = generate(backbone, PROMPTS, cfg_scale=cfg_scale, use_cache=use_cache, **options)
    assert got == [plain_loop(backbone, prompt, 2, cfg_scale=cfg_scale) for prompt in PROMPTS]
    unguided = generate(backbone, PROMPTS, **options)
    assert got != unguided
    assert got[PROMPTS.index([])] == unguided[PROMPTS.index([])], "without a prompt there is nothing to guide to"


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
    assert len(calls) == 2 * steps_per_block  # aligned at their ends, both take their first block together


def test_with_the_cache_a_finished_block_is_computed_once(backbone):
    shown = []
    backbone.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].ids_BS.shape[1]))
    options = OPTIONS | {"max_new_tokens": 12, "steps_per_block": 3}
    generate(backbone, [[1] * 8], **options)
    first, later = 8 + BLOCK, 2 * BLOCK  # the prompt's two blocks; then the block before, with the first step
    assert shown == [first, BLOCK, BLOCK, later, BLOCK, BLOCK, later, BLOCK, BLOCK]
    shown.clear()
    generate(backbone, [[1] * 8], use_cache=False, **options)
    assert shown == [12] * 3 + [16] * 3 + [20] * 3


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
        context = BlockContext(backbone, [[]] * len(x_0_BL), block_size)
        for start in range(0, length, block_size):
            x_t_BK = x_t_BL[:, start : start + block_size]
            sampled = context.masked_row_logits(x_t_BK, torch.ones_like(x_t_BK, dtype=torch.bool))
            sampled = sampled.view(*x_t_BK.shape, -1)
            place = slice(start, start + x_t_BK.shape[1])
            torch.testing.assert_close(sampled, trained_BLV[:, place], atol=1e-5, rtol=0)
            np.testing.assert_allclose(sampled, io["logits_block"][:, place], atol=1e-5)
            context.extend(x_0_BL[:, place])


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
        block = torch.tensor([[MASK]])
        logits = BlockContext(backbone, [[5, 6]], 1).masked_row_logits(block, block == MASK)[0]
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
            cfg_scale=-1.0,
            **OPTIONS | {"max_new_tokens": 0},
        )
    message = str(caught.value)
    assert "max_new_tokens is 0; expected at least 1" in message
    assert "steps_per_block is 5; expected 1 to block_size, which is 4" in message
    assert "temperature is -0.5; expected 0 (most likely token) or more" in message
    assert "batch_size is 0" in message
    assert "cfg_scale is -1.0; expected 0 (no guidance) or more" in message
    for options in (
        *({"block_size": 0}, {"steps_per_block": 0}, {"temperature": math.nan}, {"temperature": math.inf}),
        *({"cfg_scale": math.nan}, {"cfg_scale": math.inf}),
    ):
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


@settings(max_examples=15, deadline=None, suppress_health_check=FIXTURE_IS_CONSTANT)
@given(word=st.lists(st.integers(0, 37), min_size=1, max_size=2))
def test_a_sequence_ends_after_the_block_in_which_it_is_complete(backbone, word):
    def is_complete(tokens):
        return any(tokens[i : i + len(word)] == word for i in range(len(tokens)))

    free = generate(backbone, PROMPTS, steps_per_block=2, **OPTIONS)
    got = generate(backbone, PROMPTS, steps_per_block=2, is_complete=is_complete, **OPTIONS)
    for prompt, whole, tokens in zip(PROMPTS, free, got, strict=True):
        ends = [*range(BLOCK - len(prompt) % BLOCK, 10, BLOCK), 10]
        assert tokens == whole[: next((end for end in ends if is_complete(whole[:end])), 10)]


@pytest.fixture(params=["a2d_qwen3_tiny", "llada2_tiny", "dream_tiny", "llada_moe_tiny"])
def golden_backbone(request, shared):
    return load_backbone(read_checkpoint(str(shared / "golden/models" / request.param)), torch.float32, "cpu")


def test_published_layouts_say_the_same_with_and_without_the_cache(golden_backbone):
    """The published student's layout and the teacher's: logits to 1e-5, for prefixes of unlike lengths."""
    vocab_size = golden_backbone.config.vocab_size
    random = torch.Generator().manual_seed(1)
    prefixes = [torch.randint(vocab_size, (n,), generator=random).tolist() for n in (8, 0, 4, 12)]
    cached, uncached = (BlockContext(golden_backbone, prefixes, BLOCK, use_cache) for use_cache in (True, False))
    alone = [BlockContext(golden_backbone, [prefix], BLOCK, use_cache=False) for prefix in prefixes]
    rows = [0, 1, 2, 3]
    for kept in ([0, 1, 2, 3], [1, 2], [0, 1], [1]):
        for _ in range(2):
            block = torch.randint(vocab_size, (len(rows), BLOCK), generator=random)
            is_masked = torch.rand(block.shape, generator=random) < 0.6
            with torch.no_grad():
                got, want = (context.masked_row_logits(block, is_masked) for context in (cached, uncached))
                one_by_one = torch.cat([alone[b].masked_row_logits(block[i : i + 1], is_masked[i : i + 1])
                                        for i, b in enumerate(rows)])  # fmt: skip
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
            torch.testing.assert_close(got, one_by_one, atol=1e-5, rtol=0)
        for context in (cached, uncached):
            context.extend(block)
            context.keep(kept)
        for i, b in enumerate(rows):
            alone[b].extend(block[i : i + 1])
        rows = [rows[i] for i in kept]


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_published_layouts_are_sampled_alike_with_and_without_the_cache(golden_backbone, cfg_scale):
    last = golden_backbone.config.vocab_size - 1
    options = OPTIONS | {"mask_id": last, "pad_id": last - 1, "max_new_tokens": 13}
    cached, uncached = (
        generate(golden_backbone, PROMPTS, steps_per_block=3, cfg_scale=cfg_scale, use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert cached == uncached
    assert all(len(tokens) == 13 and last not in tokens for tokens in cached)
    assert len({tuple(tokens) for tokens in cached}) > 1


def test_the_masks_of_an_empty_prompt_are_level(golden_backbone):
    """All see the same tokens, and rotations are relative: rounding decides which is filled first, on any kernel."""
    block = torch.full((1, BLOCK), golden_backbone.config.vocab_size - 1)
    with torch.no_grad():
        logits = BlockContext(golden_backbone, [[]], BLOCK).masked_row_logits(block, torch.ones_like(block) == 1)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-5, rtol=0)
