"""One step of block decoding: draw a token for every masked row, and choose which of them the block keeps.

Shape suffixes: B sequences, K positions of the block, N masked rows, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from tide_cache.config.settings import Remasking


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn at masked rows.

    Fields as the arguments of `generate`; `banned_ids` are never drawn, `generator` is on the model's device and unused
    if a call has its own numbers.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    remasking: Remasking
    banned_ids: torch.Tensor
    generator: torch.Generator

    @property
    def is_random(self) -> bool:
        """Whether any random number is needed."""
        return self.temperature > 0 or self.remasking == "random"

    def __call__(
        self, logits_NV: torch.Tensor, uniform_2N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a token and its confidence for each row.

        The confidence is log p(token) at temperature 1 over all tokens that may be drawn, however it was drawn.

        Args:
            logits_NV: Overwritten.
            uniform_2N: Numbers in [0, 1) that choose the tokens, and the order of random remasking; by default the
                generator draws.
        """
        logits_NV.index_fill_(1, self.banned_ids, -torch.inf)
        if self.temperature == 0:
            token_N = logits_NV.argmax(dim=1)
        else:
            kept_NV = keep_likeliest(logits_NV / self.temperature, self.top_k, self.top_p)
            if uniform_2N is None:
                # `multinomial` does the same, but the host waits to look for negative probabilities
                race_NV = torch.empty_like(kept_NV).exponential_(generator=self.generator)
                token_N = kept_NV.softmax(dim=1).div_(race_NV).argmax(dim=1)
            else:
                token_N = chosen_by(kept_NV, uniform_2N[0])
        if self.remasking == "random":
            if uniform_2N is not None:
                return token_N, uniform_2N[1]
            return token_N, torch.rand(len(token_N), device=token_N.device, generator=self.generator)
        return token_N, logits_NV.log_softmax(dim=1).gather(1, token_N[:, None]).squeeze(1)


_ROWS_AT_A_TIME = 64
"""Rows of float64 sums; 78 MB at a vocabulary of 151,936."""


def chosen_by(logits_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """Draw from softmax(logits) with given numbers: each selects the token in whose part of the cumulative sum it lies.

    Args:
        logits_NV: At least one of a row is finite.
        uniform_N: In [0, 1), float32.
    """
    token_N = torch.zeros(len(logits_NV), dtype=torch.int64, device=logits_NV.device)
    for start in range(0, len(logits_NV), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        sums_RV = logits_NV[rows].double().softmax(dim=1).cumsum(dim=1)
        wanted_R1 = uniform_N[rows].double()[:, None] * sums_RV[:, -1:]
        token_N[rows] = torch.searchsorted(sums_RV, wanted_R1, right=True).squeeze(1)
    return token_N


def keep_likeliest(logits_NV: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Return logits with all but the likeliest tokens at -inf.

    Args:
        logits_NV: Tempered logits.
        top_k: Keep this many, and those equal to the last of them. None keeps all.
        top_p: Of those, renormalised, keep the fewest whose probabilities reach this sum; at least one. None keeps all.
    """
    if top_k is not None and top_k < logits_NV.shape[1]:
        least_N1 = logits_NV.topk(top_k, dim=1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_NV, order_NV = logits_NV.sort(dim=1, descending=True)
        probs_NV = sorted_NV.softmax(dim=1)
        is_beyond_NV = probs_NV.cumsum(dim=1) - probs_NV >= top_p
        is_beyond_NV = torch.zeros_like(is_beyond_NV).scatter(1, order_NV, is_beyond_NV)
        logits_NV = logits_NV.masked_fill(is_beyond_NV, -torch.inf)
    return logits_NV


@dataclass(frozen=True)
class Commit:
    """Which tokens of a step the block keeps.

    Attributes:
        block_size: Tokens of a block.
        steps_per_block: Steps that fill it.
        threshold: Probability above which a token is kept at once, or None.
    """

    block_size: int
    steps_per_block: int
    threshold: float | None

    def __call__(self, confidence_BK: torch.Tensor, is_masked_BK: torch.Tensor, step: int) -> torch.Tensor:
        """Mark the tokens to keep: the most confident ones of each sequence, the first of equal ones.

        Args:
            confidence_BK: Log-probabilities (or random numbers); -inf where nothing is masked.
            is_masked_BK: Positions still to be filled.
            step: 0 to `steps_per_block` - 1.
        """
        rank_BK = confidence_BK.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        is_kept_BK = rank_BK < self._share(is_masked_BK.sum(dim=1), step)[:, None]
        if self.threshold is not None:
            is_kept_BK |= confidence_BK > math.log(self.threshold)
        return is_kept_BK & is_masked_BK

    def _share(self, remaining_B: torch.Tensor, step: int) -> torch.Tensor:
        """Return the least number of tokens that this step keeps.

        With a threshold it is fixed, as SDAR's: the block over its steps, the remainder in the first ones. Without one
        it spreads what remains over the steps that are left, so that a block that begins in the prompt takes all steps.
        """
        steps_left = self.steps_per_block - step
        if self.threshold is None:
            return (remaining_B + steps_left - 1) // steps_left
        share, rest = divmod(self.block_size, self.steps_per_block)
        return torch.full_like(remaining_B, share + (step < rest))


def is_ended(is_stop_BK: torch.Tensor, is_masked_BK: torch.Tensor) -> torch.Tensor:
    """Mark the sequences [B] that have a stop id and no masked position before it.

    Args:
        is_stop_BK: Positions where the model wrote a stop id.
        is_masked_BK: Positions still to be filled.
    """
    return (is_stop_BK & (is_masked_BK.cumsum(dim=1) == 0)).any(dim=1)


@dataclass
class DecodingCounts:
    """How parallel decoding was; `generate` adds to what is given to it.

    Attributes:
        sequences: Prompts that were continued.
        tokens: Tokens they were given, a stop id included.
        forwards: Forwards that filled some of a sequence's positions, summed over sequences. Guidance runs each twice
            and counts it once.
        prefill_s: Seconds of the first step of each batch, in which its prompts are computed.
        decode_s: Seconds of all other steps.
        prefill_tokens: Tokens that the first steps kept: not counted in `tokens_per_s`.
    """

    sequences: int = 0
    tokens: int = 0
    forwards: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prefill_tokens: int = 0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens that a forward gives a sequence; nan before any."""
        return self.tokens / self.forwards if self.forwards else math.nan

    @property
    def forwards_per_sequence(self) -> float:
        """Forwards that a sequence takes; nan before any."""
        return self.forwards / self.sequences if self.sequences else math.nan

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second without the prompts' step; nan where nothing else ran."""
        return (self.tokens - self.prefill_tokens) / self.decode_s if self.decode_s else math.nan

    def figures(self) -> dict[str, float | None]:
        """Return the counts and what follows from them, ready for JSON: None where nothing was counted."""
        rates = {
            "tokens_per_forward": self.tokens_per_forward,
            "forwards_per_sequence": self.forwards_per_sequence,
            "tokens_per_s": self.tokens_per_s,
        }
        return {**asdict(self), **{name: rate if math.isfinite(rate) else None for name, rate in rates.items()}}


def total_counts(parts: Iterable[DecodingCounts]) -> DecodingCounts:
    """Return the sum of what several processes counted; seconds are those of all of them together."""
    total = DecodingCounts()
    for part in parts:
        for name, value in asdict(part).items():
            setattr(total, name, getattr(total, name) + value)
    return total
