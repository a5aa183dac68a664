"""In which order a diffusion model would reveal the tokens of an answer that it does not choose: teacher forcing.

Every step predicts all masked tokens of the current block, and what the sampler would keep is revealed, but with the
true tokens. So the order is the model's own, and every state is one of the true answer.

Source: pseudo-trajectories of d3LLM, arXiv:2601.07568, and TAD, arXiv:2605.09536; docs/decisions/trajectory-views.md.

Shape suffixes: B sequences, K positions of the block, M tokens of a sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tide_cache.config.settings import Context
from tide_cache.decoding.block_context import BlockContext
from tide_cache.decoding.full_context import FullContext
from tide_cache.decoding.step import Commit, Draw
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.moving import moved
from tide_cache.records import Bools, Int32s
from tide_cache.views.trajectory import NOT_REVEALED


@dataclass(frozen=True)
class RevealRules:
    """How a model decodes.

    Attributes:
        mask_id: Its mask token.
        commit: What a step keeps.
        context: What a step sees: the current block and those before it, or everything.
        batch_tokens: Tokens of sequences that run together.
    """

    mask_id: int
    commit: Commit
    context: Context
    batch_tokens: int


def reveal_steps(
    backbone: Backbone,
    samples: Sequence[tuple[Int32s, Bools]],
    rules: RevealRules,
    on_step: Callable[[], None] = lambda: None,
) -> list[Int32s]:
    """Return the step at which each token of each sequence is revealed, [M], `NOT_REVEALED` where it is never masked.

    Blocks count from the start of a sequence; each begins with the step after the last one of the block before.

    Args:
        backbone: The model.
        samples: True tokens, and which of them are masked at first.
        rules: How it decodes.
        on_step: Called after each block; may raise to stop.
    """
    result: list[Int32s] = [np.full(len(ids_M), NOT_REVEALED, np.int32) for ids_M, _ in samples]
    open_samples = [number for number, (_, is_masked_M) in enumerate(samples) if is_masked_M.any()]
    open_samples.sort(key=lambda number: len(samples[number][0]))
    with evaluating(backbone):
        while open_samples:
            longest = len(samples[open_samples[-1]][0])
            count = max(1, rules.batch_tokens // longest)
            some, open_samples = open_samples[-count:], open_samples[:-count]
            batch = _Batch(backbone, [_Sequence(*samples[number], result[number]) for number in some], rules)
            while batch.sequences:
                batch.reveal_block()
                on_step()
    return result


@dataclass
class _Sequence:
    """A true sequence that is revealed block by block.

    Attributes:
        ids_M: Its tokens.
        is_masked_M: Which are masked at first.
        step_M: Filled in.
        block: The current one.
        num_steps: Steps so far.
    """

    ids_M: Int32s
    is_masked_M: Bools
    step_M: Int32s
    block: int = 0
    num_steps: int = 0

    def is_done(self, block_size: int) -> bool:
        return not self.is_masked_M[self.block * block_size :].any()


class _Batch:
    """Sequences that run together, each at its own block."""

    def __init__(self, backbone: Backbone, sequences: Sequence[_Sequence], rules: RevealRules) -> None:
        self.sequences = list(sequences)
        self._backbone, self._rules, self._device = backbone, rules, backbone.device
        block_size, mask_id = rules.commit.block_size, rules.mask_id
        for sequence in sequences:
            sequence.block = int(sequence.is_masked_M.argmax()) // block_size
        starts = [sequence.block * block_size for sequence in sequences]
        self._context: BlockContext | FullContext
        if rules.context == "block":
            prefixes = [s.ids_M[:start].tolist() for s, start in zip(sequences, starts, strict=True)]
            self._context = BlockContext(backbone, prefixes, block_size)
        else:
            canvases = [np.where(s.is_masked_M, mask_id, s.ids_M).tolist() for s in sequences]
            padded = [[*canvas, *[mask_id] * (-len(canvas) % block_size)] for canvas in canvases]
            self._context = FullContext(backbone, padded, starts)
        banned = moved(torch.tensor([mask_id], dtype=torch.int64), self._device)
        self._draw = Draw(0.0, None, None, "low_confidence", banned, torch.Generator())  # draws nothing

    def reveal_block(self) -> None:
        """Reveal the current block of every sequence, and go on to the next."""
        commit, rules = self._rules.commit, self._rules
        shape = len(self.sequences), commit.block_size
        true, is_masked = np.full(shape, rules.mask_id, np.int64), np.zeros(shape, bool)
        for b, sequence in enumerate(self.sequences):
            inside = slice(sequence.block * commit.block_size, (sequence.block + 1) * commit.block_size)
            length = len(sequence.ids_M[inside])
            true[b, :length], is_masked[b, :length] = sequence.ids_M[inside], sequence.is_masked_M[inside]
        most_open = int(is_masked.sum(axis=1).max())
        true_BK, is_open_BK = (moved(torch.from_numpy(array), self._device) for array in (true, is_masked))
        row_N, place_N = (moved(torch.from_numpy(index_N), self._device) for index_N in np.nonzero(is_masked))
        step_BK = torch.full(shape, NOT_REVEALED, device=self._device)
        for step in range(min(most_open, commit.steps_per_block)):
            # without a threshold every step reveals a share of each block, and all of them are needed
            if step and commit.threshold is not None and not is_open_BK.any():
                break
            if not is_open_BK.is_cuda:  # a GPU predicts those again that are revealed: the host would have to wait
                row_N, place_N = is_open_BK.nonzero(as_tuple=True)
            shown_BK = true_BK.where(~is_open_BK, rules.mask_id)
            _, confidence_N = self._draw(self._context.masked_row_logits(shown_BK, (row_N, place_N)))
            confidence_BK = torch.full(shape, -torch.inf, device=self._device)
            confidence_BK = confidence_BK.index_put((row_N, place_N), confidence_N)
            confidence_BK = confidence_BK.where(is_open_BK, -torch.inf)
            is_revealed_BK = commit(confidence_BK, is_open_BK, step)
            step_BK = step_BK.where(~is_revealed_BK, step)
            is_open_BK = is_open_BK & ~is_revealed_BK
        self._context.extend(true_BK)
        self._note(step_BK.cpu().numpy())

    def _note(self, step_BK: np.ndarray) -> None:
        """Write down the steps of a block, and leave out the sequences that are revealed."""
        block_size = self._rules.commit.block_size
        for step_K, sequence in zip(step_BK, self.sequences, strict=True):
            start = sequence.block * block_size
            of_block = sequence.step_M[start : start + block_size]
            step_k = step_K[: len(of_block)]
            of_block[step_k >= 0] = step_k[step_k >= 0] + sequence.num_steps
            sequence.num_steps += int(step_k.max(initial=-1)) + 1
            sequence.block += 1
        running = [b for b, sequence in enumerate(self.sequences) if not sequence.is_done(block_size)]
        if len(running) < len(self.sequences):
            self.sequences = [self.sequences[b] for b in running]
            if running:
                self._context.keep(running)
