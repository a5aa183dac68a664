"""Chunks partition the bytes, are as small as they can be, and equal the recorded ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.pairing import TextTokenizer, align_bytes
from tide_cache.pairing.alignment import align_spans, tokens_within

sizes = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Token ends of both sides of one span, tokens of no bytes included."""
    teacher = np.cumsum(draw(sizes)).tolist()
    cuts = sorted(draw(st.lists(st.integers(0, teacher[-1]), max_size=30)))
    return teacher, [*cuts, teacher[-1]]


@given(two_sides())
def test_chunks_partition_the_tokens_and_cover_equal_bytes(sides):
    teacher, student = sides
    chunks = align_bytes(teacher, student)
    if teacher[-1] == 0:
        assert chunks.shape == (0, 4)
        return
    assert chunks.dtype == np.int32
    starts, ends = chunks[:, [0, 2]], chunks[:, [1, 3]]
    assert starts[0].tolist() == [0, 0]
    assert ends[-1].tolist() == [len(teacher), len(student)]
    assert (starts[1:] == ends[:-1]).all()
    assert [teacher[a - 1] for a in ends[:, 0]] == [student[b - 1] for b in ends[:, 1]]


@given(two_sides())
def test_chunks_are_minimal(sides):
    """Every position that both sides share is a border of a chunk."""
    teacher, student = sides
    borders = {teacher[a - 1] for a in align_bytes(teacher, student)[:, 1]}
    assert borders == (set(teacher) & set(student)) - {0}


def test_tokens_of_no_bytes_go_to_the_chunk_they_end():
    assert align_bytes([0, 2, 2, 5], [2, 5, 5]).tolist() == [[0, 3, 0, 1], [3, 4, 1, 3]]


def test_sides_of_different_length_align_up_to_the_last_shared_boundary():
    assert align_bytes([1, 3], [1, 2, 4]).tolist() == [[0, 1, 0, 1]]
    assert align_bytes([], []).shape == (0, 4)


@given(st.lists(two_sides(), min_size=1, max_size=6))
def test_aligning_many_spans_equals_aligning_each(spans):
    # A token of no bytes at the start of a span belongs to what lies left of it: let every first token have one.
    spans = [tuple([end + 1 for end in side] for side in sides) for sides in spans]
    flat, bounds, firsts = ([], []), ([], []), [0, 0]
    want = []
    for number, sides in enumerate(spans):
        for k in (0, 1):
            base = bounds[k][-1][1] if bounds[k] else 0
            bounds[k].append((base, base + sides[k][-1]))
            flat[k].extend(base + end for end in sides[k])
        for row in align_bytes(*sides).tolist():
            want.append((number, [row[k] + firsts[k // 2] for k in range(4)]))
        firsts = [firsts[k] + len(sides[k]) for k in (0, 1)]
    chunks, numbers = align_spans(*(np.array(side) for side in flat), *(np.array(side) for side in bounds))
    assert list(zip(numbers.tolist(), chunks.tolist(), strict=True)) == want


def test_tokens_that_straddle_a_span_are_outside():
    ends = np.array([3, 7, 10, 12])
    first, stop = tokens_within(ends, np.array([[5, 12], [3, 9], [4, 6]]))
    assert list(zip(first.tolist(), stop.tolist(), strict=True)) == [(2, 4), (1, 2), (2, 1)]
    chunks, spans = align_spans(ends, np.array([5, 6, 8, 12]), np.array([[5, 12]]), np.array([[5, 12]]))
    assert chunks.tolist() == []
    chunks, spans = align_spans(ends, np.array([5, 7, 10, 12]), np.array([[5, 12]]), np.array([[5, 12]]))
    assert chunks.tolist() == [[2, 3, 2, 3], [3, 4, 3, 4]]
    assert spans.tolist() == [0, 0]


@pytest.mark.parametrize("config", [0, 1, 2])
def test_golden_chunks(shared: Path, load_shared: Callable[[str], TextTokenizer], config: int):
    """Equal to the independently computed ones on every text whose bytes agree, all texts in one call."""
    golden = np.load(shared / "golden" / "align.npz")
    texts = [entry["text"] for entry in json.loads((shared / "golden" / "align_texts.json").read_text())["texts"]]
    name = str(golden["config_names"][config])
    teacher, student = (load_shared(side.split("-")[0]) for side in name.split("__"))
    encoded = [tokenizer.encode_many(texts) for tokenizer in (teacher, student)]
    valid = np.flatnonzero(golden[f"{name}/byte_align_valid"])
    assert len(valid) == 67
    flat, bounds = [], []
    for side, kind in zip(encoded, ("teacher", "student"), strict=True):
        ids = np.concatenate([e.ids_L for e in side])
        np.testing.assert_array_equal(ids, golden[f"{name}/{kind}_ids"])
        num_bytes = np.cumsum([len(text.encode()) for text in texts])
        starts = num_bytes - np.diff(num_bytes, prepend=0)
        flat.append(np.concatenate([e.byte_ends_L + start for e, start in zip(side, starts, strict=True)]))
        bounds.append(np.stack([starts, num_bytes], axis=1)[valid])
        assert all(side[k].is_exact for k in valid)
    chunks, spans = align_spans(flat[0], flat[1], bounds[0], bounds[1])
    offsets = golden[f"{name}/byte_align_off"]
    for number, k in enumerate(valid):
        want = golden[f"{name}/byte_align"][offsets[k] : offsets[k + 1]]
        first = [golden[f"{name}/{kind}_off"][k] for kind in ("teacher", "teacher", "student", "student")]
        np.testing.assert_array_equal(chunks[spans == number] - first, want)
        np.testing.assert_array_equal(align_bytes(*(side[k].byte_ends_L for side in encoded)), want)
