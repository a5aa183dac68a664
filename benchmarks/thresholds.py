"""What decoding by confidence saves: the same weights by threshold, and one token a step, in one run.

A trained student answers questions of GSM8K. Where none is given, a small one with random weights continues made-up
prompts, its logits made larger so that it is sure of some tokens and not of others: figures of its speed, and of
nothing else.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.options import shared_file
from benchmarks.published_shapes import SMALL_STUDENT, Config, random_backbone
from benchmarks.timing import Timings
from tide_cache.evaluation import DecodingCounts, SamplerOptions, generate
from tide_cache.evaluation.trained import open_trained
from tide_cache.modeling.backbone import Backbone
from tide_cache.records import Message

THRESHOLDS = (0.5, 0.7, 0.9, 1.0)
BLOCK_SIZE, NUM_PROMPTS, PROMPT_LENGTH = 32, 4, 64
SURENESS = 20.0
"""Factor on the logits of random weights, whose standard deviation is about 0.3 in a small student."""


@dataclass(frozen=True, eq=False)
class Answering:
    """A student with prompts to answer.

    Attributes:
        backbone: The student.
        prompts: Token ids.
        mask_id: The mask token.
        pad_id: Never written.
        stop_ids: End an answer.
        block_size: Tokens per block.
        new_tokens: Most tokens of an answer.
    """

    backbone: Backbone
    prompts: Sequence[Sequence[int]]
    mask_id: int
    pad_id: int
    stop_ids: frozenset[int]
    block_size: int
    new_tokens: int

    def answers(
        self, threshold: float | None, use_cache: bool = True, counts: DecodingCounts | None = None
    ) -> list[list[int]]:
        """Answer all prompts, one sequence at a time; without a threshold one token a step."""
        options: SamplerOptions = {
            "block_size": self.block_size, "max_new_tokens": self.new_tokens, "steps_per_block": self.block_size,
            "threshold": threshold, "use_cache": use_cache, "batch_size": 1,
        }  # fmt: skip
        return generate(
            self.backbone, self.prompts, mask_id=self.mask_id, pad_id=self.pad_id, stop_ids=self.stop_ids,
            counts=counts, **options,
        )  # fmt: skip


def random_answering(config: Config = SMALL_STUDENT, num_prompts: int = NUM_PROMPTS, new_tokens: int = 64) -> Answering:
    """Return a student with random weights that is sure of some tokens.

    Args:
        config: Its shape.
        num_prompts: Prompts, each of its own tokens.
        new_tokens: Of each answer; nothing ends one.
    """
    backbone = random_backbone(config, torch.float32, "cpu")
    with torch.no_grad():
        backbone.model.model.norm.weight.mul_(SURENESS)  # type: ignore[union-attr,operator]
    last = int(backbone.config.vocab_size) - 1
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(last - 1, (num_prompts, PROMPT_LENGTH), generator=generator).tolist()
    return Answering(backbone, prompts, last, last - 1, frozenset(), BLOCK_SIZE, new_tokens)


def trained_answering(checkpoint: Path, num_prompts: int = NUM_PROMPTS, new_tokens: int = 128) -> Answering:
    """Return a trained student with the first questions of GSM8K, as a chat.

    Args:
        checkpoint: Folder of its model.
        num_prompts: Questions.
        new_tokens: Most tokens of an answer.

    Raises:
        MaterialMissing: The questions are not there.
    """
    model = open_trained(str(checkpoint), device="cpu")
    with shared_file("data/gsm8k_test.jsonl").open(encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] for line, _ in zip(lines, range(num_prompts), strict=False)]
    tokenizer = model.tokenizer
    texts = [tokenizer.render([Message("user", text)], add_generation_prompt=True).text for text in questions]
    stops = frozenset(tokenizer.is_special_V.nonzero()[0].tolist())
    prompts = [tokenizer.encode(text).ids_L.tolist() for text in texts]
    return Answering(
        model.backbone, prompts, tokenizer.mask_id, tokenizer.pad_id, stops, model.block_size, new_tokens
    )  # fmt: skip


def measure(answering: Answering, repeats: int, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
    """Return figures by threshold; ratios are of tokens per second, each compared within a round.

    `ratio_P` is against one token a step, `cache_ratio_P` against the same threshold without kept keys and values, and
    `same_answers_P` the share of answers that are those of one token a step.

    Args:
        answering: What is decoded.
        repeats: Timed rounds.
        thresholds: Which.
    """
    work: dict[str, Callable[[], object]] = {"token_by_token": partial(answering.answers, None)}
    counts = {"token_by_token": DecodingCounts()}
    plain = answering.answers(None, counts=counts["token_by_token"])
    figures = {"tokens_per_forward_token_by_token": counts["token_by_token"].tokens_per_forward}
    for threshold in thresholds:
        name = f"{threshold:g}"
        counts[name] = DecodingCounts()
        answers = answering.answers(threshold, counts=counts[name])
        same = [one == other for one, other in zip(answers, plain, strict=True)]
        figures[f"tokens_per_forward_{name}"] = counts[name].tokens_per_forward
        figures[f"same_answers_{name}"] = sum(same) / len(same)
        work |= {
            name: partial(answering.answers, threshold),
            f"{name}_uncached": partial(answering.answers, threshold, False),
        }
    timings = Timings(work, repeats, of_cpu=True)
    figures["tokens_per_s_token_by_token"] = timings.rate("token_by_token", counts["token_by_token"].tokens)
    for threshold in thresholds:
        name = f"{threshold:g}"
        tokens = counts[name].tokens
        figures[f"tokens_per_s_{name}"] = timings.rate(name, tokens)
        figures[f"tokens_per_s_uncached_{name}"] = timings.rate(f"{name}_uncached", tokens)
        figures[f"ratio_{name}"] = timings.ratio("token_by_token", name) * tokens / counts["token_by_token"].tokens
        figures[f"cache_ratio_{name}"] = timings.ratio(f"{name}_uncached", name)
    return figures
