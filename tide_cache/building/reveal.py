"""Views of a build whose masks are steps of a decoding: by the teacher, or as the corpus says.

Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.decoding.reveal import RevealRules, reveal_steps
from tide_cache.decoding.step import Commit
from tide_cache.pairing.trajectory import token_steps
from tide_cache.records import Int32s, SamplePair
from tide_cache.teacher.capture import Teacher
from tide_cache.teacher.sorting import AnyTeacher
from tide_cache.views import whole_view
from tide_cache.views.trajectory import NOT_REVEALED, student_steps


def steps_of(
    build: PreparedBuild,
    teacher: AnyTeacher,
    indexes: Sequence[int] | None,
    pairs: Sequence[SamplePair],
    on_views: Callable[[int], None],
) -> list[Int32s]:
    """Return the step at which each student token of each sample is revealed, [L].

    Args:
        build: A checked build whose views are those of trajectories.
        teacher: With its weights loaded.
        indexes: Each sample's row; None where nobody knows, for a forecast, which takes given trajectories from left to
            right.
        pairs: The samples.
        on_views: Called with 0 in between; may raise to stop.
    """
    if build.views.trajectory == "decode":
        assert isinstance(teacher, Teacher), "what an engine wrote reveals nothing"
        every = reveal_steps(
            teacher.backbone,
            [(pair.teacher_ids_M, whole_view(pair).is_teacher_masked_M) for pair in pairs],
            _rules(build),
            lambda: on_views(0),
        )
    elif indexes is None:
        every = [np.arange(len(pair.teacher_ids_M), dtype=np.int32) for pair in pairs]
    else:
        told = token_steps([build.corpus[index] for index in indexes], build.pairer.teacher)
        every = [_cut(steps, pair) for steps, pair in zip(told, pairs, strict=True)]
    return [student_steps(pair, step_M) for pair, step_M in zip(pairs, every, strict=True)]


def _rules(build: PreparedBuild) -> RevealRules:
    views, capture = build.views, build.capture
    assert capture.context != "causal", "a causal teacher reveals nothing"
    commit = Commit(capture.block_size, views.steps_per_block or capture.block_size, views.threshold)
    return RevealRules(capture.mask_id, commit, capture.context, capture.batch_tokens)


def _cut(steps: Int32s | str, pair: SamplePair) -> Int32s:
    """Bring the steps of a whole text to a sample, which may be cut, or filled at its end."""
    assert not isinstance(steps, str), "trajectories were checked before"
    length = len(pair.teacher_ids_M)
    last = int(steps[-1]) if len(steps) else NOT_REVEALED
    result: Int32s = np.concatenate([steps[:length], np.full(max(0, length - len(steps)), last, np.int32)])
    return result
