"""Our models as lm-eval sees them: answers by the block sampler, likelihoods by the Monte-Carlo estimate."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tide_cache.config.settings import ThinkPrefix
from tide_cache.decoding.options import decoding_faults
from tide_cache.decoding.sampler import generate
from tide_cache.decoding.step import DecodingCounts
from tide_cache.evaluation.answers import cut, has_any
from tide_cache.evaluation.harness.generation import BUDGET, normalised, temperature_of
from tide_cache.evaluation.harness.likelihood import Continuation, continuation_logprobs
from tide_cache.evaluation.harness.suite import TaskSettings
from tide_cache.modeling.backbone import Backbone
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message
from tide_cache.training.distributed import World
from tide_cache.training.meeting import wait_for_all

EMPTY_THINK = "<think>\n\n</think>\n\n"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is asked; options that change an answer are part of the identity of a result.

    Attributes:
        block_size: Tokens per block.
        seed: Seed of masks, and of draws if a task asks for them.
        num_samples: Sets of masked tokens per block of a likelihood.
        think_prefix: See `ThinkPrefix`.
        threshold: Probability above which answers keep tokens at once; None for a fixed number per step.
        temperature: Temperature of draws; None for the task's.
        top_k: Draw from this many likeliest tokens; needs a temperature.
        top_p: Draw from the likeliest tokens that reach this probability; needs a temperature.
        steps_per_block: Most forwards per block of an answer; None for the task's.
    """

    block_size: int
    seed: int = 0
    num_samples: int = 128
    think_prefix: ThinkPrefix = "template"
    threshold: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    steps_per_block: int | None = None

    def faults(self) -> list[str]:
        """Return the faults of the decoding options, one line each, before weights are loaded."""
        return decoding_faults(
            {
                "block_size": self.block_size,
                "max_new_tokens": 1,
                "steps_per_block": self.block_size if self.steps_per_block is None else self.steps_per_block,
                "threshold": self.threshold,
                "temperature": self.temperature or 0.0,
                "top_k": self.top_k,
                "top_p": self.top_p,
            }
        )


class BlockDiffusionLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """One model for one task; lm-eval gives each rank its share of the questions."""

    backend = "causal"  # lm-eval then splits context and continuation after encoding both together

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: TextTokenizer,
        options: ModelOptions,
        settings: TaskSettings,
        world: World,
        progress: Progress | None = None,
    ) -> None:
        """Wrap a loaded model in lm-eval's interface.

        Args:
            backbone: The model, with its weights.
            tokenizer: The model's tokenizer.
            options: How to ask it.
            settings: Settings of the task.
            world: This process among all processes.
            progress: Hears how many requests of this rank are done.
        """
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.num_cut = 0
        """Prompts that lost their beginning because they were above the model's limit."""
        self.counts = DecodingCounts()
        """Counts of the decoding of answers; likelihoods are not counted."""
        self._options = options
        self._settings = settings
        self._progress = progress or (lambda done, total: None)
        self._world = world
        self._rank, self._world_size, self._device = world.rank, world.size, torch.device("cpu")
        self._limit = int(backbone.config.max_position_embeddings)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which replaces an empty context."""
        return self.tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's request cache."""
        return self.tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokenize a text as it is; nothing is added."""
        ids: list[int] = self.tokenizer.encode(string).ids_L.tolist()
        return ids

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation; the given start of an answer follows the generation prompt unchanged."""
        messages = [Message(message["role"], message["content"]) for message in chat_history]
        begun = ""
        if not add_generation_prompt and messages[-1].role == "assistant":
            begun = messages.pop().content
        text = self.tokenizer.render(messages, add_generation_prompt=True).text
        if self._options.think_prefix != "template":
            text = text.removesuffix(EMPTY_THINK) + (EMPTY_THINK if self._options.think_prefix == "empty" else "")
        return text + begun

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each prompt, up to its budget, a special token, or its first stop string."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        answers = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda k: (str(requests[k].args[1]), len(prompts[k])))
        generator = torch.Generator(self.backbone.device).manual_seed(self._options.seed * 1009 + self._rank)
        num_done = 0
        for batch in _alike(order, [str(request.args[1]) for request in requests], self._settings.batch_size):
            how = requests[batch[0]].args[1]
            how = normalised(how, BUDGET, self._settings.name)
            new_tokens = how["max_gen_toks"]
            asked = [prompts[k] for k in batch]
            stops = stop_strings(how.get("until"))
            texts = self._generate(asked, new_tokens, temperature_of(how), generator, stops)
            for k, ids in zip(batch, texts, strict=True):
                answers[k] = cut(self.tokenizer.decode(ids), stops)
            num_done += len(batch)
            self._progress(num_done, len(requests))
        return answers

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        temperature: float,
        generator: torch.Generator | None,
        stops: Sequence[str] = (),
    ) -> list[list[int]]:
        size = self._options.block_size
        asked = self._options
        room = self._limit // size * size - new_tokens
        return generate(
            self.backbone,
            [self._fitting(prompt, room) for prompt in prompts],
            mask_id=self.tokenizer.mask_id,
            pad_id=self.tokenizer.pad_id,
            stop_ids=set(self.tokenizer.is_special_V.nonzero()[0].tolist()),
            block_size=size,
            max_new_tokens=new_tokens,
            steps_per_block=asked.steps_per_block or self._settings.steps_per_block(size, new_tokens),
            threshold=asked.threshold,
            temperature=temperature if asked.temperature is None else asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            batch_size=self._settings.batch_size,
            generator=generator,
            is_complete=lambda ids: has_any(self.tokenizer.decode(ids), stops),
            counts=self.counts,
        )

    def _fitting(self, ids: Sequence[int], room: int) -> Sequence[int]:
        """Return prompts without the beginning of those that are too long, as lm-eval does, and count these."""
        if len(ids) <= room:
            return ids
        self.num_cut += 1
        return ids[len(ids) - max(0, room) :]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return estimates of log p(continuation | context), and whether the sampler would write the continuation."""
        limit = self._limit // self._options.block_size * self._options.block_size
        texts = [Continuation(self._fitting(context, limit - len(tokens)), tokens) for _, context, tokens in requests]
        logprobs = self._logprobs(texts)
        greedy = self._greedy(texts)
        return list(zip(logprobs, greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return estimates of log p of whole texts, in windows of the model's length that do not overlap."""
        length = self._limit // self._options.block_size * self._options.block_size - 1
        windows = []
        for k, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=length, context_len=1)
            windows += [(k, Continuation(*make_disjoint_window(window))) for window in rolling]
        totals = [0.0] * len(requests)
        for (k, _), value in zip(windows, self._logprobs([text for _, text in windows]), strict=True):
            totals[k] += value
        return totals

    def _logprobs(self, texts: Sequence[Continuation]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(texts), self._settings.batch_size):
            values += continuation_logprobs(
                self.backbone,
                texts[start : start + self._settings.batch_size],
                mask_id=self.tokenizer.mask_id,
                block_size=self._options.block_size,
                num_samples=self._options.num_samples,
                seed=self._options.seed,
            )
            self._progress(len(values), len(texts))
        return values

    def _greedy(self, texts: Sequence[Continuation]) -> list[bool]:
        """Sample once after each context, up to its longest continuation; blocks do not look ahead."""
        longest: dict[tuple[int, ...], int] = {}
        for context, tokens in texts:
            longest[tuple(context)] = max(longest.get(tuple(context), 1), len(tokens))
        contexts = sorted(longest, key=lambda context: longest[context])
        written: dict[tuple[int, ...], list[int]] = {}
        for start in range(0, len(contexts), self._settings.batch_size):
            batch = contexts[start : start + self._settings.batch_size]
            answers = generate(
                self.backbone,
                batch,
                mask_id=self.tokenizer.mask_id,
                pad_id=self.tokenizer.pad_id,
                stop_ids=(),
                block_size=self._options.block_size,
                max_new_tokens=longest[batch[-1]],
                steps_per_block=self._options.block_size,
                batch_size=self._settings.batch_size,
            )
            written |= zip(batch, answers, strict=True)
        return [written[tuple(context)][: len(tokens)] == list(tokens) for context, tokens in texts]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's number of questions for every rank.

        lm-eval only uses it to give all ranks the same number, for models whose ranks run in step; shorter ranks would
        answer a question twice.
        """
        return tensor.repeat(self._world_size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Return on one rank what all ranks have."""
        parts: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        wait_for_all(self._world)  # one rank's questions may take far longer than another's
        dist.gather_object(obj, parts, dst)
        return parts

    def barrier(self) -> None:
        """Wait for all ranks."""
        wait_for_all(self._world)


def stop_strings(until: str | Iterable[str] | None) -> list[str]:
    """Return the texts before which an answer ends, as a task says them: one, several or none; empty ones stop nothing.

    Args:
        until: `generation_kwargs.until` of the task.
    """
    return [stop for stop in ([until] if isinstance(until, str) else until or ()) if stop]


def _alike(order: Sequence[int], kinds: Sequence[str], batch_size: int) -> Iterable[list[int]]:
    """Yield an order in batches of one kind."""
    batch: list[int] = []
    for k in order:
        if batch and (len(batch) == batch_size or kinds[k] != kinds[batch[0]]):
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch
