"""Log-likelihood of a continuation under a masked diffusion model, which has no exact one: an unbiased estimate.

The quantity is the any-order likelihood: the mean, over all orders in which the tokens of a block can be revealed, of
the sum of log p(token | revealed tokens), block after block. In a random order, a token is revealed with l tokens still
masked with the same probability for each l from 1 to N. So with l drawn uniformly and l of the N tokens masked at
random, N / l times the sum of log p over the masked tokens is unbiased: the weight 1 / t at t = l / N. A block whose
sets of masked tokens can all be tried within the number of samples is computed exactly.

Shape suffixes: L tokens, N tokens of the continuation in one block, M sets of masked tokens, B sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tide_cache.arrays import sums_before
from tide_cache.errors import ModelError
from tide_cache.evaluation.forward import truth_rows
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone
from tide_cache.records import Bools, StudentBatch
from tide_cache.views.random import KeyedRandom


class Continuation(NamedTuple):
    """Tokens to score, and the tokens before them."""

    context: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True, eq=False)
class WeightedMasks:
    """Sets of masked tokens of one block, and the weight of the sum of log p over each.

    Attributes:
        is_masked_MN: Which tokens each set masks; at least one.
        weight_M: Weights, float64.
    """

    is_masked_MN: Bools
    weight_M: npt.NDArray[np.float64]


def every_mask(num_tokens: int) -> WeightedMasks:
    """Return all sets of masked tokens; their weighted sum is the any-order log-likelihood itself.

    Args:
        num_tokens: N; there are 2^N - 1 sets.
    """
    sets = [chosen for size in range(1, num_tokens + 1) for chosen in combinations(range(num_tokens), size)]
    is_masked_MN = np.zeros((len(sets), num_tokens), bool)
    for m, chosen in enumerate(sets):
        is_masked_MN[m, list(chosen)] = True
    return WeightedMasks(is_masked_MN, np.array([1 / (len(chosen) * comb(num_tokens, len(chosen))) for chosen in sets]))


def drawn_masks(num_tokens: int, num_samples: int, random: KeyedRandom) -> WeightedMasks:
    """Draw sets of masked tokens whose weighted sum is an unbiased estimate.

    The sizes are spread evenly over 1 to N from a common random start. This lowers the variance, and each size alone
    is still uniform.

    Args:
        num_tokens: N.
        num_samples: Number of sets.
        random: Source of random numbers.
    """
    places_M = (random.uniform(1).astype(np.float64) + np.arange(num_samples) / num_samples) % 1
    sizes_M = 1 + np.floor(places_M * num_tokens).astype(np.int64)
    rank_MN = np.stack([random.permutation(num_tokens) for _ in range(num_samples)])
    return WeightedMasks(rank_MN < sizes_M[:, None], num_tokens / (sizes_M * num_samples))


def continuation_logprobs(
    backbone: Backbone,
    texts: Sequence[Continuation],
    *,
    mask_id: int,
    block_size: int,
    num_samples: int,
    seed: int,
    batch_tokens: int = 8192,
) -> list[float]:
    """Estimate log p(continuation | context) of each text, in nats.

    Each block sees the clean blocks before it, the context in it, and nothing that follows: the rest of the last
    block is masked, as it is when the sampler gets there.

    Args:
        backbone: The model; its mode is left as it was.
        texts: An empty continuation has log-likelihood 0.
        mask_id: The mask token.
        block_size: Tokens per block, counted from the first token of the context.
        num_samples: Sets of masked tokens per block, if it has more; a block of N tokens with 2^N - 1 sets or
            fewer is exact.
        seed: Seed of the sets, which otherwise depend only on the text's tokens.
        batch_tokens: Tokens per forward, counting both copies of a sequence.

    Raises:
        ModelError: The model's output is not finite.
    """
    totals = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda k: len(texts[k].context) + len(texts[k].tokens))
    with evaluating(backbone):
        masked = (m for k in order for m in _masked(k, texts[k], block_size, num_samples, seed))
        for batch in _batches(masked, block_size, batch_tokens):
            logprobs_N = truth_rows(backbone, _student_batch(batch, mask_id, block_size), block_size).truth_logprobs_N
            if not logprobs_N.isfinite().all():
                raise ModelError("the model's output is not finite; check the checkpoint, or use float32")
            starts = sums_before([len(entry.positions) for entry in batch])
            for entry, values_N in zip(batch, np.split(logprobs_N.double().numpy(), starts[1:-1]), strict=True):
                totals[entry.text] += float(values_N @ entry.weights)
    return totals


@dataclass(frozen=True, eq=False)
class _Masked:
    """One text with one set of masked tokens in each of its blocks.

    Attributes:
        text: Number of the text.
        ids_L: All its tokens.
        positions: Positions of the masked tokens.
        weights: Weights of their log p.
    """

    text: int
    ids_L: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]


def _masked(k: int, text: Continuation, block_size: int, num_samples: int, seed: int) -> Iterator[_Masked]:
    """Yield masked versions of a text, with all blocks masked at once: the x_t copies do not see each other."""
    ids_L = np.array([*text.context, *text.tokens], np.int64)
    random = KeyedRandom("likelihood", seed, len(text.context), ids_L.tobytes().hex())
    first, stop = len(text.context), len(ids_L)
    blocks = []
    for start in range(first - first % block_size, stop, block_size):
        begin, end = max(first, start), min(stop, start + block_size)
        is_few = 2 ** (end - begin) - 1 <= num_samples
        masks = every_mask(end - begin) if is_few else drawn_masks(end - begin, num_samples, random)
        blocks.append((begin, masks))
    for m in range(max((len(masks.weight_M) for _, masks in blocks), default=0)):
        shown = [(begin, masks) for begin, masks in blocks if m < len(masks.weight_M)]
        positions = [begin + masks.is_masked_MN[m].nonzero()[0] for begin, masks in shown]
        weights = [np.full(len(at), masks.weight_M[m]) for at, (_, masks) in zip(positions, shown, strict=True)]
        yield _Masked(k, ids_L, np.concatenate(positions), np.concatenate(weights))


def _batches(masked: Iterator[_Masked], block_size: int, batch_tokens: int) -> Iterator[list[_Masked]]:
    """Yield batches of texts with the same length in whole blocks."""
    waiting = next(masked, None)
    while waiting is not None:
        length = _in_blocks(waiting, block_size)
        batch, waiting = [waiting], None
        for entry in islice(masked, max(0, batch_tokens // (2 * length) - 1)):
            if _in_blocks(entry, block_size) != length:
                waiting = entry
                break
            batch.append(entry)
        yield batch
        waiting = waiting if waiting is not None else next(masked, None)


def _in_blocks(entry: _Masked, block_size: int) -> int:
    return -(-len(entry.ids_L) // block_size) * block_size


def _student_batch(batch: Sequence[_Masked], mask_id: int, block_size: int) -> StudentBatch:
    """Return [x_t, x_0] of a batch; what follows the continuation in its last block is masked and not scored."""
    shape = (len(batch), _in_blocks(batch[0], block_size))
    x_0_BL = np.full(shape, mask_id, np.int64)
    x_t_BL = np.full(shape, mask_id, np.int64)
    for b, entry in enumerate(batch):
        x_0_BL[b, : len(entry.ids_L)] = x_t_BL[b, : len(entry.ids_L)] = entry.ids_L
        x_t_BL[b, entry.positions] = mask_id
    sample_N = np.repeat(np.arange(len(batch)), [len(entry.positions) for entry in batch])
    position_N = np.concatenate([entry.positions for entry in batch])
    arrays = (x_0_BL, x_t_BL, np.ones(shape, bool), sample_N, position_N)
    x_0, x_t, is_real, row_sample_N, row_position_N = (torch.from_numpy(array) for array in arrays)
    return StudentBatch(x_0, x_t, is_real, row_sample_N, row_position_N)
