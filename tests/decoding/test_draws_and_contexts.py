"""Draws by name, the full context, causal sampling, and the order in which tokens are kept."""

import itertools

import numpy as np
import pytest
import torch

from tide_cache.decoding.causal import generate_causal
from tide_cache.decoding.sampler import generate
from tide_cache.decoding.step import chosen_by
from tide_cache.errors import RunFileError
from tide_cache.modeling.packing import pack_causal, pack_full

MASK, PAD, BLOCK = 39, 38, 4
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8], [9, 7], [9, 3, 2, 3, 8, 4, 6, 2, 6]]
KEYS = [f"sample {number}" for number in range(len(PROMPTS))]
OPTIONS = {"mask_id": MASK, "pad_id": PAD, "stop_ids": {0}, "block_size": BLOCK, "max_new_tokens": 10}
RANDOM = OPTIONS | {"steps_per_block": 2, "temperature": 1.5, "seed": 3}
CAUSAL = {"stop_ids": {0}, "banned_ids": (MASK, PAD), "max_new_tokens": 8, "temperature": 1.5, "seed": 3}


def test_a_number_chooses_the_token_in_whose_part_it_lies():
    logits_NV = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(5, 1)
    logits_NV[4, 1] = -torch.inf
    uniform_N = torch.tensor([0.0, 0.19, 0.21, 0.71, 0.41])
    assert chosen_by(logits_NV, uniform_N).tolist() == [0, 0, 1, 2, 2]
    largest = torch.full((2,), float(np.nextafter(np.float32(1), np.float32(0))))
    assert chosen_by(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), largest).tolist() == [0, 1]


@pytest.mark.parametrize("change", [{}, {"remasking": "random"}, {"context": "full"}, {"threshold": 0.3}])
def test_a_draw_depends_on_seed_and_name_alone(backbone, change):
    options = RANDOM | change
    want = generate(backbone, PROMPTS, keys=KEYS, **options)
    order = [3, 0, 4, 2, 1]
    mixed = generate(backbone, [PROMPTS[i] for i in order], keys=[KEYS[i] for i in order], batch_size=2, **options)
    assert [mixed[order.index(i)] for i in range(len(PROMPTS))] == want
    assert generate(backbone, PROMPTS, keys=KEYS, **options | {"seed": 4}) != want
    (alone, other) = generate(backbone, PROMPTS[:1] * 2, keys=["sample 0", "another"], **options)
    assert alone == want[0]
    assert other != alone


def test_in_the_full_context_a_step_sees_all_masks_to_come(backbone):
    def plain(prompt):
        length = -(-(len(prompt) + 10) // BLOCK) * BLOCK
        ids = torch.tensor([[*prompt, *[MASK] * (length - len(prompt))]])
        for start in range(len(prompt) // BLOCK * BLOCK, length, BLOCK):
            for _ in range(BLOCK):
                is_open = torch.zeros(length, dtype=torch.bool)
                is_open[start : start + BLOCK] = ids[0, start : start + BLOCK] == MASK
                if not is_open.any():
                    break
                with torch.no_grad():
                    hidden = backbone(pack_full(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
                logits = hidden @ backbone.head_VD.T
                logits[:, [MASK, PAD]] = -torch.inf
                confidence, token = logits.softmax(1).max(1)
                place = confidence.where(is_open, torch.tensor(-1.0)).argmax()
                ids[0, place] = token[place]
        return ids[0, len(prompt) :][:10].tolist()

    options = OPTIONS | {"stop_ids": (), "steps_per_block": BLOCK, "context": "full"}
    got = generate(backbone, PROMPTS, batch_size=3, **options)
    assert got == [plain(prompt) for prompt in PROMPTS]
    assert got != generate(backbone, PROMPTS, **options | {"context": "block"})
    guided = generate(backbone, PROMPTS, cfg_scale=2.0, **options)
    assert guided != got


@pytest.mark.parametrize("context", ["block", "full"])
def test_the_steps_say_in_which_order_tokens_were_kept(backbone, context):
    steps = {}
    options = OPTIONS | {"context": context, "steps_per_block": 2, "reveal_steps": steps}
    answers = generate(backbone, PROMPTS, **options)
    for index, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        is_stopped = len(answer) < 10
        assert len(steps[index]) == len(answer) + is_stopped
        assert set(range(max(steps[index]) + 1)) >= set(steps[index])
        blocks = [
            [step for _, step in group]
            for _, group in itertools.groupby(enumerate(steps[index], len(prompt)), lambda place: place[0] // BLOCK)
        ]
        for before, after in itertools.pairwise(blocks):
            assert max(before) < min(after), "blocks are written one after the other"
    one_by_one = {}
    generate(backbone, [[]], **options | {"steps_per_block": BLOCK, "stop_ids": (), "reveal_steps": one_by_one})
    assert len(set(one_by_one[0])) == 10, "one token a step"


def test_causal_sampling_takes_the_likeliest_next_token(backbone):
    def plain(prompt):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8:
            ids_BL = torch.tensor([ids])
            with torch.no_grad():
                hidden = backbone.outputs(pack_causal(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool)))[0, -1]
            logits = hidden @ backbone.head_VD.T
            logits[[MASK, PAD]] = -torch.inf
            if (token := int(logits.argmax())) == 0:
                break
            ids.append(token)
        return ids[len(prompt) :]

    greedy = CAUSAL | {"temperature": 0.0}
    assert generate_causal(backbone, PROMPTS, keys=KEYS, batch_size=3, **greedy) == [plain(p) for p in PROMPTS]


def test_a_causal_draw_depends_on_seed_and_name_alone(backbone):
    stopped = set()
    want = generate_causal(backbone, PROMPTS, keys=KEYS, stopped=stopped, **CAUSAL)
    assert stopped == {index for index, answer in enumerate(want) if len(answer) < 8}
    backwards = generate_causal(backbone, PROMPTS[::-1], keys=KEYS[::-1], batch_size=1, **CAUSAL)
    assert backwards[::-1] == want
    assert generate_causal(backbone, PROMPTS, keys=KEYS, **CAUSAL | {"seed": 4}) != want
    few = generate_causal(backbone, PROMPTS, keys=KEYS, is_complete=lambda ids: len(ids) == 2, **CAUSAL)
    assert few == [answer[:2] for answer in want]


def test_causal_sampling_refuses_what_does_not_fit(backbone):
    with pytest.raises(RunFileError, match=r"found an empty prompt(.|\n)*above the model's limit of 48"):
        generate_causal(backbone, [[], [1] * 45], keys=["a", "b"], **CAUSAL)
