"""What decoding by confidence saves and costs: the same weights by threshold, and one token a step, in one run.

A trained student answers questions of GSM8K; and, so that a student which answers nothing right has an accuracy too, it
writes each block of true answers after the true text before it. Where no student is given, a small one with random
weights continues made-up prompts, its logits made larger so that it is sure of some tokens and not of others: figures
of its speed, and of nothing else.
"""

import json
from collections.abc import Callable, Iterator, Sequence
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
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message

THRESHOLDS = (0.5, 0.7, 0.9, 1.0)
AT_LEAST_TWO = 0.9
"""Threshold that is also measured with at least two tokens a step."""
HELD_OUT_ROWS, MAX_LENGTH = 32, 160
"""Rows of GSM8K's test part whose answers are written block by block, and the longest one that is taken, in tokens."""
BLOCK_SIZE, NUM_PROMPTS, PROMPT_LENGTH = 32, 4, 64
SURENESS = 20.0
"""Factor on the logits of random weights, whose standard deviation is about 0.3 in a small student."""


@dataclass(frozen=True)
class Way:
    """A way to decode.

    Attributes:
        threshold: Probability above which tokens are kept at once; None for a fixed number a step.
        least: Fewest tokens of a step.
    """

    threshold: float | None
    least: int = 1

    @property
    def name(self) -> str:
        """As figures are called: `0.9`, and `0.9_by_2` with at least two tokens a step."""
        name = "token_by_token" if self.threshold is None else f"{self.threshold:g}"
        return name if self.least == 1 else f"{name}_by_{self.least}"


TOKEN_BY_TOKEN = Way(None)


@dataclass(frozen=True, eq=False)
class Answering:
    """A student with prompts to answer.

    Attributes:
        backbone: The student.
        prompts: Token ids.
        blocks: Token ids up to the end of a block of a true answer, and how many of the last are that block's.
        mask_id: The mask token.
        pad_id: Never written.
        stop_ids: End an answer.
        block_size: Tokens per block.
        new_tokens: Most tokens of an answer.
    """

    backbone: Backbone
    prompts: Sequence[Sequence[int]]
    blocks: Sequence[tuple[Sequence[int], int]]
    mask_id: int
    pad_id: int
    stop_ids: frozenset[int]
    block_size: int
    new_tokens: int

    def answers(self, way: Way, use_cache: bool = True, counts: DecodingCounts | None = None) -> list[list[int]]:
        """Answer all prompts, one sequence at a time."""
        return self._generate(self.prompts, way, self.stop_ids, self.new_tokens, 1, use_cache, counts)

    def block_accuracy(self, way: Way, counts: DecodingCounts) -> float:
        """Return the share of the tokens of `blocks` that are written as they are in the true answer."""
        num_right = 0
        for length in sorted({length for _, length in self.blocks}):
            texts = [ids for ids, of_block in self.blocks if of_block == length]
            before = [ids[:-length] for ids in texts]
            written = self._generate(before, way, frozenset(), length, HELD_OUT_ROWS, True, counts)
            for ids, tokens in zip(texts, written, strict=True):
                num_right += sum(one == other for one, other in zip(ids[-length:], tokens, strict=True))
        return num_right / sum(length for _, length in self.blocks)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        way: Way,
        stop_ids: frozenset[int],
        new_tokens: int,
        batch_size: int,
        use_cache: bool,
        counts: DecodingCounts | None,
    ) -> list[list[int]]:
        options: SamplerOptions = {
            "block_size": self.block_size, "max_new_tokens": new_tokens, "threshold": way.threshold,
            "steps_per_block": max(1, self.block_size // way.least), "use_cache": use_cache, "batch_size": batch_size,
        }  # fmt: skip
        return generate(
            self.backbone, prompts, mask_id=self.mask_id, pad_id=self.pad_id, stop_ids=stop_ids, counts=counts,
            **options,
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
    return Answering(backbone, prompts, (), last, last - 1, frozenset(), BLOCK_SIZE, new_tokens)


def trained_answering(
    checkpoint: Path, num_prompts: int = NUM_PROMPTS, new_tokens: int = 64, num_rows: int = HELD_OUT_ROWS
) -> Answering:
    """Return a trained student with the first questions of GSM8K's test part, as a chat, and the blocks of answers.

    Args:
        checkpoint: Folder of its model.
        num_prompts: Questions that it answers.
        new_tokens: Most tokens of an answer.
        num_rows: True answers that are cut into blocks: the first ones that are short enough.

    Raises:
        MaterialMissing: The questions are not there.
    """
    model = open_trained(str(checkpoint), dtype="bfloat16", device="cpu")
    tokenizer = model.tokenizer
    with shared_file("data/gsm8k_test.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    messages = [[Message("user", row["question"])] for row in rows]
    asked = [_ids(tokenizer, tokenizer.render(one, add_generation_prompt=True).text) for one in messages]
    answers = [[*_ids(tokenizer, row["answer"]), tokenizer.eos_id] for row in rows]
    texts = [(len(question), question + answer) for question, answer in zip(asked, answers, strict=True)]
    short = [(start, ids) for start, ids in texts if len(ids) <= MAX_LENGTH][:num_rows]
    blocks = [block for start, ids in short for block in _whole_blocks(ids, start, model.block_size)]
    stops = frozenset(tokenizer.is_special_V.nonzero()[0].tolist())
    return Answering(
        model.backbone, asked[:num_prompts], blocks, tokenizer.mask_id, tokenizer.pad_id, stops, model.block_size,
        new_tokens,
    )  # fmt: skip


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids_L.tolist()
    return ids


def _whole_blocks(ids: list[int], start: int, block_size: int) -> Iterator[tuple[list[int], int]]:
    """Cut what stands from `start` on at block boundaries; a last block that is not full is left out."""
    while (end := (start // block_size + 1) * block_size) <= len(ids):
        yield ids[:end], end - start
        start = end


def measure(answering: Answering, repeats: int, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
    """Return figures by threshold; ratios are of tokens per second, each compared within a round.

    `ratio_P` is against one token a step, `cache_ratio_P` against the same threshold without kept keys and values, and
    `same_answers_P` the share of answers that are those of one token a step. `P_by_2` keeps at least two tokens a step.

    Args:
        answering: What is decoded.
        repeats: Timed rounds.
        thresholds: Which.
    """
    ways = [*map(Way, thresholds), *(Way(one, least=2) for one in thresholds if one == AT_LEAST_TWO)]
    work: dict[str, Callable[[], object]] = {}
    counts = {way.name: DecodingCounts() for way in (TOKEN_BY_TOKEN, *ways)}
    answers = {way.name: answering.answers(way, counts=counts[way.name]) for way in (TOKEN_BY_TOKEN, *ways)}
    plain = answers[TOKEN_BY_TOKEN.name]
    figures = {f"tokens_per_forward_{name}": counted.tokens_per_forward for name, counted in counts.items()}
    for way in ways:
        same = [one == other for one, other in zip(answers[way.name], plain, strict=True)]
        figures[f"same_answers_{way.name}"] = sum(same) / len(same)
    if answering.blocks:
        figures |= _in_blocks(answering, [TOKEN_BY_TOKEN, *ways])
    for way in (TOKEN_BY_TOKEN, *ways):
        work[way.name] = partial(answering.answers, way)
        work[f"{way.name}_uncached"] = partial(answering.answers, way, False)
    timings = Timings(work, repeats, of_cpu=True)
    for name, counted in counts.items():
        figures[f"tokens_per_s_{name}"] = timings.rate(name, counted.tokens)
        figures[f"tokens_per_s_uncached_{name}"] = timings.rate(f"{name}_uncached", counted.tokens)
        figures[f"cache_ratio_{name}"] = timings.ratio(f"{name}_uncached", name)
    for way in ways:
        share = counts[way.name].tokens / counts[TOKEN_BY_TOKEN.name].tokens
        figures[f"ratio_{way.name}"] = timings.ratio(TOKEN_BY_TOKEN.name, way.name) * share
    return figures


def _in_blocks(answering: Answering, ways: Sequence[Way]) -> dict[str, float]:
    """Return accuracy and tokens per forward in blocks of true answers, and how many tokens were counted."""
    figures = {"block_tokens": float(sum(length for _, length in answering.blocks))}
    for way in ways:
        counts = DecodingCounts()
        figures[f"block_accuracy_{way.name}"] = answering.block_accuracy(way, counts)
        figures[f"block_tokens_per_forward_{way.name}"] = counts.tokens_per_forward
    return figures
