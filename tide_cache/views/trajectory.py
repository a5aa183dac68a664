"""Views on given masks: each is a step of a decoding of the answer, and masks what is not revealed by then; pure.

A chunk is revealed as a whole, with the last of its teacher tokens, so that masks stay consistent on both sides.

Source: trajectories of TAD, arXiv:2605.09536; docs/decisions/trajectory-views.md.

Shape suffixes as in `tide_cache.records`.
"""

import numpy as np

from tide_cache.config.sections import ViewsConfig
from tide_cache.records import Bools, Int32s, MaskedView, SamplePair, UInt16s
from tide_cache.views.masking import expand_to_chunks
from tide_cache.views.schedule import draw_time, mask_probability, time_of_probability

MOST_STEPS = int(np.iinfo(np.uint16).max)
NOT_REVEALED = -1
"""Stands for the step of a token that was never masked."""


def student_steps(pair: SamplePair, step_M: Int32s) -> Int32s:
    """Return the step at which each student token is revealed, [L].

    Tokens outside chunks are revealed with the chunk before them, those before the first chunk with that; what comes
    after the last chunk, the end of the answer, at the last step.

    Args:
        pair: The sample.
        step_M: Step of each teacher token, from 0; `NOT_REVEALED` where none is known, which counts as 0.
    """
    length, chunks_C4 = len(pair.student_ids_L), pair.chunks_C4
    if not len(chunks_C4):
        return np.zeros(length, np.int32)
    step_C = np.maximum.reduceat(np.append(step_M, NOT_REVEALED), chunks_C4[:, :2].ravel())[::2]
    step_C = np.maximum(step_C, 0)
    position_L = np.arange(length)
    chunk_L = np.maximum(np.searchsorted(chunks_C4[:, 2], position_L, side="right") - 1, 0)
    is_behind_L = position_L >= chunks_C4[-1, 3]
    result: Int32s = np.where(is_behind_L, step_C.max(), step_C[chunk_L]).astype(np.int32)
    return result


def trajectory_view(pair: SamplePair, view: int, config: ViewsConfig, step_L: Int32s) -> tuple[MaskedView, UInt16s]:
    """Return the view at a step of a decoding, and how many steps from there on each masked token takes, [N].

    The same arguments always give the same. A token that the step itself reveals takes 1.

    The step is where the share of steps that are still to come is nearest above the mask probability at a diffusion
    time that is drawn as for random views. The view's own t is the one whose mask probability is that share.

    Args:
        pair: The sample.
        view: Number of the view.
        config: How to draw times.
        step_L: From `student_steps`.
    """
    t = draw_time(config.seed, pair.sample_id, view, config.num_views, config.time_sampling)
    num_steps = int(step_L[pair.is_supervised_L].max(initial=0)) + 1
    left = max(1, int(np.ceil(mask_probability(t, config.schedule) * num_steps)))
    is_masked_L: Bools = pair.is_supervised_L & (step_L >= num_steps - left)
    t = time_of_probability(left / num_steps, config.schedule)
    masked = MaskedView(pair.sample_id, view, t, *expand_to_chunks(pair, is_masked_L))
    left_N = step_L[masked.is_student_masked_L] - (num_steps - left) + 1
    steps_N: UInt16s = left_N.clip(1, MOST_STEPS).astype(np.uint16)
    return masked, steps_N
