"""Block diffusion sampling: blocks from left to right, and inside a block the most confident tokens first.

A sampled block sees itself and the clean blocks before it, as the x_t copy does in training with [x_t, x_0]: one model
serves both. Blocks are counted from position 0 of the sequence, so the first generated tokens share the prompt's last,
incomplete block. Blocks are always sampled as a whole, as in training, and cut afterwards.

Two rules say what a step commits. Without a threshold: ceil(remaining / steps left) tokens, the most confident first
(SDAR's `low_confidence_static` on whole blocks). With a threshold: every token above it, and at least the step's share
(SDAR's `low_confidence_dynamic`, which SGLang and LMDeploy serve).

Shape suffixes: B sequences, K positions of the block, N masked rows, V vocabulary.
"""

import time
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tide_cache.config.settings import Context, Remasking
from tide_cache.decoding.block_context import BlockContext
from tide_cache.decoding.full_context import FullContext
from tide_cache.decoding.options import decoding_faults
from tide_cache.decoding.step import Commit, DecodingCounts, Draw, is_ended
from tide_cache.errors import RunFileError, fault_list
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.moving import moved
from tide_cache.views.random import KeyedRandom

OnBlock = Callable[[int, list[int]], None]
IsComplete = Callable[[list[int]], bool]


def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    mask_id: int,
    pad_id: int,
    stop_ids: Collection[int],
    block_size: int,
    max_new_tokens: int,
    steps_per_block: int,
    threshold: float | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    remasking: Remasking = "low_confidence",
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    on_block: OnBlock | None = None,
    cfg_scale: float = 0.0,
    use_cache: bool = True,
    is_complete: IsComplete | None = None,
    counts: DecodingCounts | None = None,
    context: Context = "block",
    keys: Sequence[str] | None = None,
    seed: int = 0,
    reveal_steps: MutableMapping[int, list[int]] | None = None,
) -> list[list[int]]:
    """Continue each prompt until a stop id or `max_new_tokens`, block by block.

    A step predicts every masked token of the block and commits some of them: see `threshold`. A sequence ends as soon
    as all tokens before a stop id are committed. At temperature 0 with `low_confidence`, prompts have the same answers
    in a batch as alone.

    Args:
        backbone: The model; its mode is left as it was.
        prompts: Token ids; may have different lengths, and may be empty.
        mask_id: The mask token; never produced.
        pad_id: Never produced, unless it is a stop id too.
        stop_ids: A sequence ends before the first of these.
        block_size: Tokens per block.
        max_new_tokens: Most tokens per prompt.
        steps_per_block: Most forwards per block; equal to `block_size` commits one token at a time.
        threshold: None commits ceil(remaining / steps left) tokens per step. With a probability in (0, 1], a step
            commits every token above it, and at least block_size / steps_per_block (the remainder in the first steps).
        temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
        top_k: Draw from this many likeliest tokens; None from all. Needs a temperature above 0, like `top_p`.
        top_p: Draw from the fewest tokens, of those, whose probabilities reach this sum; None from all.
        remasking: Which predictions are committed first: the likeliest ones (by probability at temperature 1), or any.
        batch_size: Sequences per forward; prompts of about the same length run together.
        generator: Source of randomness, on the model's device; by default one with seed 0. Unused at temperature 0
            with `low_confidence`.
        on_block: Called after each block of each sequence with the prompt's index and all its tokens so far.
        cfg_scale: Classifier-free guidance: logits become un + (1 + cfg_scale) (cond - un), where un is what the model
            says when the prompt's tokens are masked. 0 samples without it; above, each step takes two forwards.
        use_cache: Keep keys and values of finished blocks. Without them every step computes them again: the same
            tokens, but slower, for a check or if memory is short.
        is_complete: Called after each block with a sequence's tokens so far; if true, the sequence ends there.
        counts: Tokens, forwards and seconds are added to it.
        context: What a step sees. `block`: the current block, and those before it. `full`: all `max_new_tokens`
            positions, also those still masked, for a model that was trained so; nothing is cached.
        keys: Names of the prompts. With keys, a draw depends only on `seed`, name, block and step, not on the batch or
            other prompts. By default `generator` draws.
        seed: Seed for draws by `keys`.
        reveal_steps: Gets, by the number of a prompt, the step at which each of its new tokens was kept, and its stop
            id: the number of earlier forwards, over all of its blocks.

    Returns:
        New tokens of each prompt, without the stop id.

    Raises:
        RunFileError: An impossible option, or a sequence above the model's limit; lists every fault.

    Source: semi-autoregressive decoding with low-confidence remasking as in LLaDA, arXiv:2502.09992, section 2.4, and
    guidance as in its published sampler; keys and values kept by block as in block diffusion, arXiv:2503.09573; the
    threshold as in SDAR, arXiv:2510.06303.
    """
    faults = _size_faults(backbone, prompts, block_size, max_new_tokens, batch_size)
    faults += decoding_faults(
        {
            "block_size": block_size,
            "max_new_tokens": max_new_tokens,
            "steps_per_block": steps_per_block,
            "threshold": threshold,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "remasking": remasking,
            "cfg_scale": cfg_scale,
        }
    )
    if faults:
        raise RunFileError(fault_list("nothing can be generated:", faults))
    if generator is None:
        generator = torch.Generator(backbone.device).manual_seed(0)
    device = backbone.device
    banned = {mask_id} | ({pad_id} - set(stop_ids))
    banned_ids, stops = (moved(torch.tensor(sorted(ids), dtype=torch.int64), device) for ids in (banned, stop_ids))
    draw = Draw(temperature, top_k, top_p, remasking, banned_ids, generator)
    commit = Commit(block_size, steps_per_block, threshold)
    rules = _Rules(mask_id, stops, commit, cfg_scale, use_cache, context, max_new_tokens, seed)
    counts = DecodingCounts() if counts is None else counts
    sequences = [
        _Sequence(index, list(prompt), len(prompt), None if keys is None else keys[index])
        for index, prompt in enumerate(prompts)
    ]
    by_length = sorted(sequences, key=lambda sequence: sequence.block_start(block_size))
    with evaluating(backbone):
        for first in range(0, len(sequences), batch_size):
            batch = _Batch(backbone, by_length[first : first + batch_size], rules)
            while batch.sequences:
                blocks = batch.sample_block(draw, counts)
                for sequence, (block, steps) in zip(batch.sequences, blocks, strict=True):
                    sequence.extend(block, steps, block_size, stop_ids, max_new_tokens)
                    if on_block is not None:
                        on_block(sequence.index, sequence.new_tokens)
                    if is_complete is not None and is_complete(sequence.new_tokens):
                        sequence.is_done = True
                batch.drop_finished()
    counts.sequences += len(sequences)
    counts.tokens += sum(len(sequence.new_tokens) + sequence.is_stopped for sequence in sequences)
    if reveal_steps is not None:
        reveal_steps.update({sequence.index: sequence.written_steps for sequence in sequences})
    return [sequence.new_tokens for sequence in sequences]


@dataclass
class _Sequence:
    """A prompt with what was generated so far; before the last block it always ends at a block boundary."""

    index: int
    ids: list[int]
    prompt_length: int
    key: str | None = None
    new_tokens: list[int] = field(default_factory=list)
    is_done: bool = False
    is_stopped: bool = False
    steps: list[int] = field(default_factory=list)

    def block_start(self, block_size: int) -> int:
        return len(self.ids) // block_size * block_size

    @property
    def written_steps(self) -> list[int]:
        """The step at which each new token was kept, and the stop id."""
        return self.steps[: len(self.new_tokens) + self.is_stopped]

    def extend(
        self, block: list[int], steps: list[int], block_size: int, stop_ids: Collection[int], max_new_tokens: int
    ) -> None:
        first = max(self.steps, default=-1) + 1
        self.steps += [first + step for step in steps[len(self.ids) - self.block_start(block_size) :]]
        self.ids[self.block_start(block_size) :] = block
        new_tokens = self.ids[self.prompt_length :][:max_new_tokens]
        stops = [place for place, token in enumerate(new_tokens) if token in stop_ids]
        self.new_tokens = new_tokens[: stops[0]] if stops else new_tokens
        self.is_stopped = bool(stops)
        self.is_done = self.is_stopped or len(new_tokens) == max_new_tokens


@dataclass(frozen=True)
class _Rules:
    """Options for all blocks; fields as the arguments of `generate`."""

    mask_id: int
    stop_ids: torch.Tensor
    commit: Commit
    cfg_scale: float
    use_cache: bool
    context: Context
    max_new_tokens: int
    seed: int


class _Batch:
    """Sequences that run together, each at its own current block, from their prompts until all are done."""

    def __init__(self, backbone: Backbone, sequences: Sequence[_Sequence], rules: _Rules) -> None:
        self.sequences = list(sequences)
        self._rules = rules
        self._device = backbone.device
        block_size = rules.commit.block_size
        prefixes = [sequence.ids[: sequence.block_start(block_size)] for sequence in sequences]
        self._is_prefilled = False
        self._context = self._shown(backbone, prefixes)
        self._unconditional: BlockContext | FullContext | None = None
        if rules.cfg_scale > 0:
            self._unconditional = self._shown(backbone, [[rules.mask_id] * len(prefix) for prefix in prefixes])

    def _shown(self, backbone: Backbone, prefixes: Sequence[Sequence[int]]) -> BlockContext | FullContext:
        """Return what a step sees in addition to its block."""
        rules, block_size = self._rules, self._rules.commit.block_size
        if rules.context == "block":
            return BlockContext(backbone, prefixes, block_size, rules.use_cache)
        blocks = [-(-(sequence.prompt_length + rules.max_new_tokens) // block_size) for sequence in self.sequences]
        canvases = [
            [*prefix, *[rules.mask_id] * (num_blocks * block_size - len(prefix))]
            for prefix, num_blocks in zip(prefixes, blocks, strict=True)
        ]
        return FullContext(backbone, canvases, [len(prefix) for prefix in prefixes])

    def sample_block(self, draw: Draw, counts: DecodingCounts) -> list[tuple[list[int], list[int]]]:
        """Fill the current block of every sequence; return its tokens, including the prompt's, and their steps.

        After a stop id the block is left masked. The step of a position that is not filled here is -1.
        """
        commit = self._rules.commit
        shape = len(self.sequences), commit.block_size
        is_masked = torch.ones(shape, dtype=torch.bool)
        is_prompt, ids = torch.zeros_like(is_masked), torch.full(shape, self._rules.mask_id)
        step_BK = torch.full(shape, -1, device=self._device)
        for b, sequence in enumerate(self.sequences):
            start = sequence.block_start(commit.block_size)
            known = sequence.ids[start:]
            ids[b, : len(known)] = torch.tensor(known, dtype=torch.int64)
            is_masked[b, : len(known)] = False
            is_prompt[b, : max(0, sequence.prompt_length - start)] = True
        ids_BK, is_masked_BK, is_prompt_BK = (moved(tensor, self._device) for tensor in (ids, is_masked, is_prompt))
        for step in range(commit.steps_per_block):
            start_s = time.perf_counter()
            row_N, place_N = (moved(index_N, self._device) for index_N in is_masked.nonzero(as_tuple=True))
            uniform_2BK = self._uniform(step) if draw.is_random else None
            uniform_2N = None if uniform_2BK is None else moved(uniform_2BK[:, is_masked], self._device)
            token_N, confidence_N = draw(self._logits(ids_BK, (row_N, place_N), is_prompt_BK), uniform_2N)
            token_BK = ids_BK.index_put((row_N, place_N), token_N)
            confidence_BK = torch.full(shape, -torch.inf, device=self._device)
            confidence_BK = confidence_BK.index_put((row_N, place_N), confidence_N)
            is_committed_BK = commit(confidence_BK, is_masked_BK, step)
            ids_BK = torch.where(is_committed_BK, token_BK, ids_BK)
            step_BK = torch.where(is_committed_BK, step, step_BK)
            is_masked_BK = is_masked_BK & ~is_committed_BK
            is_stop_BK = torch.isin(ids_BK, self._rules.stop_ids) & ~is_prompt_BK & ~is_masked_BK
            is_masked_BK &= ~is_ended(is_stop_BK, is_masked_BK)[:, None]
            counts.forwards += int(is_masked.any(dim=1).sum())
            # the host waits once per step, for one copy of all that it must know
            of_step = torch.stack([ids_BK, step_BK, is_masked_BK.long(), is_committed_BK.long()]).cpu()
            ids, steps, *flags = of_step
            is_masked, is_committed = (flag_BK.bool() for flag_BK in flags)
            self._count_time(counts, time.perf_counter() - start_s, int(is_committed.sum()))
            if not is_masked.any():
                break
        self._context.extend(ids_BK)
        if self._unconditional is not None:
            self._unconditional.extend(ids_BK.where(~is_prompt_BK, self._rules.mask_id))
        blocks, steps = torch.stack([ids, steps]).tolist()
        return list(zip(blocks, steps, strict=True))

    def drop_finished(self) -> None:
        """Remove the sequences that are done."""
        running = [b for b, sequence in enumerate(self.sequences) if not sequence.is_done]
        if len(running) < len(self.sequences):
            self.sequences = [self.sequences[b] for b in running]
            self._context.keep(running)
            if self._unconditional is not None:
                self._unconditional.keep(running)

    def _uniform(self, step: int) -> torch.Tensor | None:
        """Return the numbers [2, B, K] of a step, on the CPU, keyed by sequence and block; None without keys."""
        block_size = self._rules.commit.block_size
        drawn = [
            KeyedRandom("answer", self._rules.seed, sequence.key, sequence.block_start(block_size), step).uniform(
                2 * block_size
            )
            for sequence in self.sequences
            if sequence.key is not None
        ]
        if not drawn:
            return None
        uniform_B2K = torch.from_numpy(np.stack(drawn)).view(len(drawn), 2, block_size)
        return uniform_B2K.transpose(0, 1)

    def _count_time(self, counts: DecodingCounts, seconds: float, num_committed: int) -> None:
        if self._is_prefilled:
            counts.decode_s += seconds
            return
        self._is_prefilled = True
        counts.prefill_s += seconds
        counts.prefill_tokens += num_committed

    def _logits(
        self, ids_BK: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor], is_prompt_BK: torch.Tensor
    ) -> torch.Tensor:
        """Return guided logits [N, V] at the masked positions, given by sequence and place."""
        logits_NV = self._context.masked_row_logits(ids_BK, rows)
        if self._unconditional is None:
            return logits_NV
        without_prompt_BK = ids_BK.where(~is_prompt_BK, self._rules.mask_id)
        free_NV = self._unconditional.masked_row_logits(without_prompt_BK, rows)
        return free_NV + (1 + self._rules.cfg_scale) * (logits_NV - free_NV)


def _size_faults(
    backbone: Backbone, prompts: Sequence[Sequence[int]], block_size: int, max_new_tokens: int, batch_size: int
) -> list[str]:
    numbers = {"block_size": block_size, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    faults = [f"{name} is {number}; expected at least 1" for name, number in numbers.items() if number < 1]
    limit = int(backbone.config.max_position_embeddings)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if block_size >= 1 and (needed := -(-(longest + max_new_tokens) // block_size) * block_size) > limit:
        faults.append(
            f"the longest prompt has {longest} tokens, with {max_new_tokens} new ones in whole blocks of {block_size} "
            f"that needs {needed} positions, the model's limit is {limit}; lower max_new_tokens or shorten the prompt"
        )
    return faults
