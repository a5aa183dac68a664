"""Block diffusion sampling: blocks from left to right, and inside a block the most confident tokens first.

A block under sampling sees itself and the clean blocks before it, which is what the x_t copy sees in training with
[x_t, x_0]: one model serves both. Blocks are counted from position 0 of the sequence, so the first generated tokens
share the prompt's last, incomplete block. Blocks are always sampled whole, as the model was trained, and cut after.

Shape suffixes: B sequences, S positions up to the end of the current block, K positions of the block, N masked rows,
V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired, Required, TypedDict, Unpack

import torch

from tide_cache.errors import RunFileError, fault_list
from tide_cache.evaluation.forward import evaluating
from tide_cache.modeling.attention import block_diffusion_mask
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.packing import PackedInput
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message

Remasking = Literal["low_confidence", "random"]
OnBlock = Callable[[int, list[int]], None]


class SamplerOptions(TypedDict):
    """Options of `generate`, for functions that hand them on; defaults are its own."""

    block_size: Required[int]
    max_new_tokens: Required[int]
    steps_per_block: Required[int]
    temperature: NotRequired[float]
    remasking: NotRequired[Remasking]
    batch_size: NotRequired[int]
    generator: NotRequired[torch.Generator | None]


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
    temperature: float = 0.0,
    remasking: Remasking = "low_confidence",
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    on_block: OnBlock | None = None,
) -> list[list[int]]:
    """Continue each prompt until a stop id or `max_new_tokens`, block by block.

    A step predicts every masked token of the block and commits ceil(remaining / steps left) of them. At temperature 0
    with `low_confidence`, a batch gives what its prompts give one by one.

    Args:
        backbone: The model; its mode is left as it was.
        prompts: Token ids; may have different lengths, and may be empty.
        mask_id: The mask token; never produced.
        pad_id: Never produced, unless it is a stop id too.
        stop_ids: A sequence ends before the first of these.
        block_size: Tokens per block.
        max_new_tokens: Most tokens per prompt.
        steps_per_block: Forwards per block; equal to `block_size` commits one token at a time.
        temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
        remasking: Which predictions are committed first: the likeliest ones (by probability at temperature 1), or any.
        batch_size: Sequences per forward; those at the same block run together.
        generator: Source of randomness, on the model's device; by default one with seed 0. Unused at temperature 0
            with `low_confidence`.
        on_block: Called after each block of each sequence with the prompt's index and all its tokens so far.

    Returns:
        New tokens of each prompt, without the stop id.

    Raises:
        RunFileError: An impossible option, or a sequence above the model's limit; lists every fault.

    Source: semi-autoregressive decoding with low-confidence remasking as in LLaDA, arXiv:2502.09992, section 2.4.
    """
    _require_usable(backbone, prompts, block_size, max_new_tokens, steps_per_block, temperature, batch_size)
    if generator is None:
        generator = torch.Generator(backbone.device).manual_seed(0)
    banned = {mask_id} | ({pad_id} - set(stop_ids))
    draw = _Draw(temperature, remasking, torch.tensor(sorted(banned), device=backbone.device), generator)
    sequences = [_Sequence(index, list(prompt), len(prompt)) for index, prompt in enumerate(prompts)]
    waiting = list(sequences)
    with evaluating(backbone):
        while waiting:
            start = min(sequence.block_start(block_size) for sequence in waiting)
            chosen = [s for s in waiting if s.block_start(block_size) == start][:batch_size]
            sampled_BK = _sample_block(backbone, chosen, start, block_size, steps_per_block, mask_id, draw)
            for sequence, block in zip(chosen, sampled_BK.tolist(), strict=True):
                sequence.extend(block, start, stop_ids, max_new_tokens)
                if on_block is not None:
                    on_block(sequence.index, sequence.new_tokens)
            waiting = [sequence for sequence in waiting if not sequence.is_done]
    return [sequence.new_tokens for sequence in sequences]


def generate_text(
    backbone: Backbone,
    tokenizer: TextTokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    on_block: OnBlock | None = None,
    **options: Unpack[SamplerOptions],
) -> list[str]:
    """Answer each conversation with the assistant's next turn.

    Args:
        backbone: The model.
        tokenizer: The model's own, with chat template and mask token.
        conversations: Messages, the last of which is answered.
        on_block: As in `generate`.
        options: As in `generate`.

    Returns:
        Texts; each ends before the first special token, since those are what a template writes, never an answer.
    """
    texts = [tokenizer.render(messages, add_generation_prompt=True).text for messages in conversations]
    prompts: list[list[int]] = [encoded.ids_L.tolist() for encoded in tokenizer.encode_many(texts)]
    answers = generate(
        backbone,
        prompts,
        mask_id=tokenizer.mask_id,
        pad_id=tokenizer.pad_id,
        stop_ids=set(tokenizer.is_special_V.nonzero()[0].tolist()),
        on_block=on_block,
        **options,
    )
    return [tokenizer.decode(ids) for ids in answers]


def masked_row_logits(
    backbone: Backbone, ids_BS: torch.Tensor, is_masked_BS: torch.Tensor, block_size: int
) -> torch.Tensor:
    """Give float32 logits [N, V] at the masked positions of sequences that end with their current block.

    A token sees its own and earlier blocks: the clean copy's rule of the block-diffusion mask. The prefix is
    computed anew in each call.
    """
    num_sequences, length = ids_BS.shape
    mask_SS = block_diffusion_mask(length, block_size, num_views=0).to(ids_BS.device)
    packed = PackedInput(
        ids_BS=ids_BS,
        positions_BS=torch.arange(length, device=ids_BS.device).expand(num_sequences, -1),
        mask_B1SS=mask_SS.expand(num_sequences, 1, -1, -1),
    )
    return apply_head(backbone(packed)[is_masked_BS], backbone.head_VD)


@dataclass
class _Sequence:
    """A prompt with what was generated so far; before the last block it always ends at a block boundary."""

    index: int
    ids: list[int]
    prompt_length: int
    new_tokens: list[int] = field(default_factory=list)
    is_done: bool = False

    def block_start(self, block_size: int) -> int:
        return len(self.ids) // block_size * block_size

    def extend(self, block: list[int], start: int, stop_ids: Collection[int], max_new_tokens: int) -> None:
        self.ids[start:] = block
        new_tokens = self.ids[self.prompt_length :][:max_new_tokens]
        stops = [place for place, token in enumerate(new_tokens) if token in stop_ids]
        self.new_tokens = new_tokens[: stops[0]] if stops else new_tokens
        self.is_done = bool(stops) or len(new_tokens) == max_new_tokens


@dataclass(frozen=True)
class _Draw:
    """How tokens are drawn at masked rows, and how sure each one is."""

    temperature: float
    remasking: Remasking
    banned_ids: torch.Tensor
    generator: torch.Generator

    def __call__(self, logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give a token and its confidence for each row; `logits_NV` is overwritten."""
        logits_NV[:, self.banned_ids] = -torch.inf
        if self.temperature == 0:
            token_N = logits_NV.argmax(dim=1)
        else:
            probs_NV = (logits_NV / self.temperature).softmax(dim=1)
            token_N = probs_NV.multinomial(1, generator=self.generator).squeeze(1)
        if self.remasking == "random":
            return token_N, torch.rand(len(token_N), device=token_N.device, generator=self.generator)
        return token_N, logits_NV.log_softmax(dim=1).gather(1, token_N[:, None]).squeeze(1)


def _sample_block(
    backbone: Backbone,
    sequences: Sequence[_Sequence],
    start: int,
    block_size: int,
    num_steps: int,
    mask_id: int,
    draw: _Draw,
) -> torch.Tensor:
    """Fill the block at `start` of every sequence; gives its tokens [B, K], the prompt's own included."""
    ids_BS = torch.full((len(sequences), start + block_size), mask_id, device=backbone.device)
    is_masked_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    for b, sequence in enumerate(sequences):
        ids_BS[b, : len(sequence.ids)] = torch.tensor(sequence.ids, dtype=torch.int64)
        is_masked_BS[b, : len(sequence.ids)] = False
    for steps_left in range(num_steps, 0, -1):
        token_N, confidence_N = draw(masked_row_logits(backbone, ids_BS, is_masked_BS, block_size))
        token_BS = ids_BS.masked_scatter(is_masked_BS, token_N)
        confidence_BS = torch.full(ids_BS.shape, -torch.inf, device=ids_BS.device)
        confidence_BS = confidence_BS.masked_scatter(is_masked_BS, confidence_N)
        is_committed_BS = is_masked_BS & _is_among_the_surest(confidence_BS, is_masked_BS.sum(dim=1), steps_left)
        ids_BS = torch.where(is_committed_BS, token_BS, ids_BS)
        is_masked_BS = is_masked_BS & ~is_committed_BS
        if not is_masked_BS.any():
            break
    return ids_BS[:, start:]


def _is_among_the_surest(confidence_BS: torch.Tensor, remaining_B: torch.Tensor, steps_left: int) -> torch.Tensor:
    """Mark the ceil(remaining / steps left) most confident positions of each sequence; ties go to the first."""
    num_committed_B = (remaining_B + steps_left - 1) // steps_left
    rank_BS = confidence_BS.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank_BS < num_committed_B[:, None]


def _require_usable(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    block_size: int,
    max_new_tokens: int,
    steps_per_block: int,
    temperature: float,
    batch_size: int,
) -> None:
    numbers = {"block_size": block_size, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    faults = [f"{name} is {number}; expected at least 1" for name, number in numbers.items() if number < 1]
    if not 1 <= steps_per_block <= block_size:
        faults.append(f"steps_per_block is {steps_per_block}; expected 1 to block_size, which is {block_size}")
    if not temperature >= 0:
        faults.append(f"temperature is {temperature}; expected 0 (most likely token) or more")
    limit = int(backbone.config.max_position_embeddings)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if block_size >= 1 and (needed := -(-(longest + max_new_tokens) // block_size) * block_size) > limit:
        faults.append(
            f"the longest prompt has {longest} tokens, with {max_new_tokens} new ones in whole blocks of {block_size} "
            f"that needs {needed} positions, the model's limit is {limit}; lower max_new_tokens or shorten the prompt"
        )
    if faults:
        raise RunFileError(fault_list("nothing can be generated:", faults))
