"""Samples to test with: any mix of chunks, aligned pairs and tokens that only one side has."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tide_cache.records import SampleId, SamplePair


@st.composite
def pairs(draw, vocab: int = 12, max_spans: int = 6, sample_id: str | None = None) -> SamplePair:
    """Samples whose spans have 0 to 3 tokens a side, half of them one; a span with tokens on both is mostly a chunk."""
    size = st.just((1, 1)) | st.tuples(st.integers(0, 3), st.integers(0, 3))
    sizes = [*draw(st.lists(size, max_size=max_spans)), (0, 1)]
    student_ids, teacher_ids = (
        draw(st_numpy.arrays(np.int32, sum(size[side] for size in sizes), elements=st.integers(0, vocab - 1)))
        for side in (1, 0)
    )
    chunks, student_at, teacher_at = [], 0, 0
    for teacher_size, student_size in sizes:
        if teacher_size and student_size and draw(st.integers(0, 3)):
            chunks.append((teacher_at, teacher_at + teacher_size, student_at, student_at + student_size))
            if teacher_size == student_size == 1 and draw(st.integers(0, 3)):
                teacher_ids[teacher_at] = student_ids[student_at]
        student_at, teacher_at = student_at + student_size, teacher_at + teacher_size
    is_supervised = draw(st_numpy.arrays(np.bool_, student_at, elements=st.sampled_from([True, True, True, False])))
    name = draw(st.text(max_size=5)) if sample_id is None else sample_id
    return SamplePair(
        SampleId(name), student_ids, is_supervised, teacher_ids, np.array(chunks, np.int32).reshape(-1, 4)
    )


def one_to_one(sample_id: str, num_tokens: int, vocab: int = 12) -> SamplePair:
    """A sample of aligned pairs only, all supervised."""
    ids = np.random.default_rng(num_tokens).integers(0, vocab, num_tokens).astype(np.int32)
    at = np.arange(num_tokens, dtype=np.int32)
    chunks = np.stack([at, at + 1, at, at + 1], axis=1)
    return SamplePair(SampleId(sample_id), ids, np.ones(num_tokens, bool), ids, chunks)
