"""CompDemo: a view's masked chunks are split into A and B; pass one shows A and asks for B, pass two the reverse.

So the teacher predicts each masked token with about half of the other masked tokens as a demonstration.

Source: complementary demonstration of TIDE, arXiv:2604.26951, as executed (golden/losses_alm_seed0.npz): each chunk
is drawn independently, so a side may hold more or less than its share, or nothing.
"""

from dataclasses import replace

import numpy as np

from tide_cache.records import Bools, Float32s, MaskedView, SamplePair
from tide_cache.views.masking import chunks_touched, spans_to_mask
from tide_cache.views.random import KeyedRandom


def draw_shown_first(pair: SamplePair, view: MaskedView, seed: int, demo_ratio: float) -> Bools:
    """Draw which chunks of a view are in A; the same sample, view number and seed always give the same one.

    Args:
        pair: The sample.
        view: One of its views.
        seed: Mask seed.
        demo_ratio: Probability that a masked chunk is in A: rho.

    Returns:
        Teacher positions [M] that are masked in the view and shown in pass one: A.
    """
    random = KeyedRandom("compdemo", seed, view.sample_id, view.view)
    return shown_first(pair, view, random.uniform(len(pair.chunks_C4)), demo_ratio)


def shown_first(pair: SamplePair, view: MaskedView, uniform_C: Float32s, demo_ratio: float) -> Bools:
    """Mark the teacher positions [M] of the masked chunks whose random number is below `demo_ratio`."""
    is_first_C = chunks_touched(pair, view.is_student_masked_L) & (uniform_C < np.float32(demo_ratio))
    teacher_start_C, teacher_end_C = pair.chunks_C4[is_first_C, 0], pair.chunks_C4[is_first_C, 1]
    return spans_to_mask(teacher_start_C, teacher_end_C, len(pair.teacher_ids_M))


def partial_views(view: MaskedView, is_shown_first_M: Bools) -> list[MaskedView]:
    """Return the two views that the teacher sees in place of one: the first masks B, the second masks A.

    If a side is empty, there is only one view; it masks all that the original masks.
    """
    sides = (view.is_teacher_masked_M & ~is_shown_first_M, view.is_teacher_masked_M & is_shown_first_M)
    return [replace(view, is_teacher_masked_M=side_M) for side_M in sides if side_M.any()] or [view]
