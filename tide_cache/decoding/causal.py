"""Sampling from a causal model: one token after another, each from the model's output after all earlier tokens.

Shape suffixes: B sequences, P prompt columns, S key columns, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tide_cache.decoding.sampler import IsComplete
from tide_cache.decoding.step import DecodingCounts, Draw
from tide_cache.errors import RunFileError, fault_list
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.packing import PackedInput
from tide_cache.views.random import KeyedRandom


def generate_causal(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    keys: Sequence[str],
    stop_ids: Collection[int],
    banned_ids: Collection[int] = (),
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    is_complete: IsComplete | None = None,
    counts: DecodingCounts | None = None,
    stopped: set[int] | None = None,
) -> list[list[int]]:
    """Continue each prompt until a stop id or `max_new_tokens`.

    Args:
        backbone: A causal model; its mode is left as it was.
        prompts: Token ids, at least one each; may have different lengths.
        keys: Names of the prompts. A draw depends only on `seed`, name and place, not on the batch or other prompts.
        stop_ids: A sequence ends before the first of these.
        banned_ids: Never produced.
        max_new_tokens: Most tokens per prompt.
        temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
        top_k: As for `generate`.
        top_p: As for `generate`.
        seed: Seed of all draws.
        batch_size: Sequences per forward; prompts of about the same length run together.
        is_complete: As for `generate`; called after each token.
        counts: As for `generate`.
        stopped: Gets the numbers of prompts that ended with a stop id.

    Returns:
        New tokens of each prompt, without the stop id.

    Raises:
        RunFileError: A sequence above the model's limit, or an empty prompt.
    """
    if faults := _faults(backbone, prompts, max_new_tokens):
        raise RunFileError(fault_list("nothing can be generated:", faults))
    banned = torch.tensor(sorted(banned_ids), dtype=torch.int64, device=backbone.device)
    draw = Draw(temperature, top_k, top_p, "low_confidence", banned, torch.Generator(backbone.device))
    sequences = [_Sequence(index, list(prompt), keys[index]) for index, prompt in enumerate(prompts)]
    by_length = sorted(sequences, key=lambda sequence: len(sequence.prompt))
    counts = DecodingCounts() if counts is None else counts
    with evaluating(backbone):
        for first in range(0, len(sequences), batch_size):
            batch = _Batch(backbone, by_length[first : first + batch_size])
            while batch.sequences:
                counts.forwards += len(batch.sequences)
                uniform_2B = _uniform(batch.sequences, seed, backbone.device) if draw.is_random else None
                token_B, _ = draw(batch.logits(), uniform_2B)
                batch.append(token_B)
                for sequence, token in zip(batch.sequences, token_B.tolist(), strict=True):
                    sequence.append(token, stop_ids, max_new_tokens)
                    sequence.is_done |= is_complete is not None and is_complete(sequence.new_tokens)
                batch.drop_finished()
    counts.sequences += len(sequences)
    counts.tokens += sum(len(sequence.new_tokens) + sequence.is_stopped for sequence in sequences)
    if stopped is not None:
        stopped |= {sequence.index for sequence in sequences if sequence.is_stopped}
    return [sequence.new_tokens for sequence in sequences]


@dataclass
class _Sequence:
    """A prompt with what was generated so far."""

    index: int
    prompt: list[int]
    key: str
    new_tokens: list[int] = field(default_factory=list)
    is_done: bool = False
    is_stopped: bool = False

    def append(self, token: int, stop_ids: Collection[int], max_new_tokens: int) -> None:
        self.is_stopped = token in stop_ids
        if not self.is_stopped:
            self.new_tokens.append(token)
        self.is_done = self.is_stopped or len(self.new_tokens) == max_new_tokens


class _Batch:
    """Sequences that run together; prompts are padded in front, and no token attends to padding."""

    def __init__(self, backbone: Backbone, sequences: Sequence[_Sequence]) -> None:
        self.sequences = list(sequences)
        self._backbone, self._cache = backbone, backbone.new_cache()
        device, length = backbone.device, max(len(sequence.prompt) for sequence in sequences)
        self._padding_B = torch.tensor([length - len(sequence.prompt) for sequence in sequences], device=device)
        padded = [[0] * (length - len(sequence.prompt)) + sequence.prompt for sequence in sequences]
        self._pending_BP = torch.tensor(padded, dtype=torch.int64, device=device)
        self._num_cached = 0

    def logits(self) -> torch.Tensor:
        """Return float32 logits [B, V] of the next token; keys and values of earlier tokens are cached."""
        num_known = self._num_cached + self._pending_BP.shape[1]
        column_S = torch.arange(num_known, device=self._pending_BP.device)
        column_Q = column_S[self._num_cached :]
        is_seen_BQS = (column_S <= column_Q[:, None]) & (column_S >= self._padding_B[:, None, None])
        packed = PackedInput(
            ids_BS=self._pending_BP,
            positions_BS=(column_Q - self._padding_B[:, None]).clamp(min=0),
            mask_B1SS=(is_seen_BQS | (column_S == column_Q[:, None]))[:, None],
        )
        hidden_BQD = self._backbone.outputs(packed, self._cache)
        self._num_cached = num_known
        return apply_head(hidden_BQD[:, -1], self._backbone.head_VD)

    def append(self, token_B: torch.Tensor) -> None:
        """Append a token to each sequence; it is computed with the next one."""
        self._pending_BP = token_B[:, None]

    def drop_finished(self) -> None:
        """Remove the sequences that are done."""
        running = [b for b, sequence in enumerate(self.sequences) if not sequence.is_done]
        if len(running) < len(self.sequences):
            self.sequences = [self.sequences[b] for b in running]
            row_R = torch.tensor(running, dtype=torch.int64, device=self._padding_B.device)
            self._padding_B, self._pending_BP = self._padding_B[row_R], self._pending_BP[row_R]
            self._cache.batch_select_indices(row_R)


def _uniform(sequences: Sequence[_Sequence], seed: int, device: torch.device) -> torch.Tensor:
    """Return the numbers that choose the next tokens, [2, B]; the second row is unused."""
    drawn = [KeyedRandom("answer", seed, sequence.key, len(sequence.new_tokens)).uniform(2) for sequence in sequences]
    return torch.from_numpy(np.stack(drawn, axis=1)).to(device)


def _faults(backbone: Backbone, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    faults = [] if all(prompts) else ["found an empty prompt; a causal model needs a token before the first new one"]
    limit, longest = int(backbone.config.max_position_embeddings), max(map(len, prompts), default=0)
    if longest + max_new_tokens > limit:
        faults.append(
            f"the longest prompt has {longest} tokens, with {max_new_tokens} new ones that is above the model's limit "
            f"of {limit}; lower max_new_tokens or shorten the prompt"
        )
    return faults
