"""Masks of a view: drawn per token, then extended to whole chunks on the student's and the teacher's side."""

import numpy as np

from tide_cache.arrays import sums_before
from tide_cache.config.sections import ViewsConfig
from tide_cache.records import Bools, MaskedView, SamplePair
from tide_cache.views.random import KeyedRandom
from tide_cache.views.schedule import MIN_T, draw_time, mask_probability, time_of_probability


def is_complement(view: int, complementary: bool) -> bool:
    """Return whether a view masks what the previous one shows."""
    return complementary and view % 2 == 1


def draw_view(pair: SamplePair, view: int, config: ViewsConfig) -> MaskedView:
    """Draw a masked view; the same pair, number and configuration always give the same one.

    With `complementary`, view 2j+1 masks exactly the supervised tokens that view 2j shows, and its t is the one whose
    mask probability is the complement, at least `MIN_T`.

    Args:
        pair: The sample.
        view: Number of the view; numbers from `num_views` on give additional views.
        config: How to draw.
    """
    is_second = is_complement(view, config.complementary)
    drawn = view - 1 if is_second else view
    rounds = config.num_views // 2 if config.complementary else config.num_views
    time_index = drawn // 2 if config.complementary else drawn
    t = draw_time(config.seed, pair.sample_id, time_index, max(rounds, 1), config.time_sampling)
    uniform_L = KeyedRandom("mask", config.seed, pair.sample_id, drawn).uniform(len(pair.student_ids_L))
    is_drawn_L = (uniform_L < np.float32(mask_probability(t, config.schedule))) & pair.is_supervised_L
    is_student_masked_L, is_teacher_masked_M = expand_to_chunks(pair, is_drawn_L)
    if is_second:
        t = max(MIN_T, time_of_probability(1 - mask_probability(t, config.schedule), config.schedule))
        is_student_masked_L, is_teacher_masked_M = expand_to_chunks(pair, pair.is_supervised_L & ~is_student_masked_L)
    return MaskedView(pair.sample_id, view, t, is_student_masked_L, is_teacher_masked_M)


def whole_view(pair: SamplePair) -> MaskedView:
    """Return the view that masks everything that any view may mask: number 0, t = 1."""
    return MaskedView(pair.sample_id, 0, 1.0, *expand_to_chunks(pair, pair.is_supervised_L))


def expand_to_chunks(pair: SamplePair, is_drawn_L: Bools) -> tuple[Bools, Bools]:
    """Mask every chunk that has a drawn token, as a whole; unsupervised student tokens stay visible.

    Returns:
        Student mask [L] and teacher mask [M].

    Source: the chunk masking of TIDE, arXiv:2604.26951, as executed (golden/masking.npz).
    """
    is_masked_C = chunks_touched(pair, is_drawn_L)
    _, _, student_start_C, student_end_C = pair.chunks_C4.T
    is_student_masked_L = is_drawn_L | spans_to_mask(
        student_start_C[is_masked_C], student_end_C[is_masked_C], len(pair.student_ids_L)
    )
    teacher_start_C, teacher_end_C = pair.chunks_C4[is_masked_C, 0], pair.chunks_C4[is_masked_C, 1]
    is_teacher_masked_M = spans_to_mask(teacher_start_C, teacher_end_C, len(pair.teacher_ids_M))
    return is_student_masked_L & pair.is_supervised_L, is_teacher_masked_M


def chunks_touched(pair: SamplePair, is_masked_L: Bools) -> Bools:
    """Return for each chunk whether any of its student tokens is masked."""
    total_L = sums_before(is_masked_L)
    result: Bools = total_L[pair.chunks_C4[:, 3]] > total_L[pair.chunks_C4[:, 2]]
    return result


def active_chunks(pair: SamplePair, view: MaskedView) -> Bools:
    """Return for each chunk whether it has a loss: it is masked, and all its student tokens are supervised."""
    return chunks_touched(pair, view.is_student_masked_L) & pair.is_distillable_C


def spans_to_mask(starts: np.ndarray, ends: np.ndarray, length: int) -> Bools:
    """Mark the positions that half-open spans cover."""
    steps = np.zeros(length + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    result: Bools = np.cumsum(steps[:-1]) > 0
    return result
