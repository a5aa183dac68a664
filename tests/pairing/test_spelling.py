"""Spelling keeps the bytes: what the student would write is what the teacher said, or there is no spelling."""

import numpy as np
import pytest

from helpers.fresh import IS_FULL
from tide_cache.pairing import Spelling
from tide_cache.pairing.remembered import Remembered

PAIRS = [("falcon", "qwen"), ("qwen", "phi3"), *([("phi2", "qwen")] if IS_FULL else [])]
"""From bytes to bytes, and to SentencePiece; each vocabulary takes seconds."""


@pytest.fixture(scope="module")
def spellings(load_shared):
    made = {}

    def make(teacher, student):
        if (teacher, student) not in made:
            one, other = load_shared(teacher), load_shared(student)
            made[teacher, student] = (one, other, Spelling(one, other, one.vocab_size + 7))
        return made[teacher, student]

    return make


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_single_tokens_keep_their_bytes_and_size(spellings, teacher, student):
    one, other, spelling = spellings(teacher, student)
    ids_J = np.random.default_rng(0).integers(0, one.vocab_size, 4000).astype(np.int32)
    for size in (1, 2, 3):
        spelled_JP = spelling.single(ids_J, np.full(len(ids_J), size, np.int32))
        found = [(i, row) for i, row in zip(ids_J.tolist(), spelled_JP.tolist(), strict=True) if row[0] >= 0]
        assert len(found) > 40
        for i, row in found:
            assert other.token_bytes.join(row) == one.token_bytes.of(i)


def spelled_by(spelling, tuples):
    """Spellings of tuples of any lengths; None for those that have none."""
    found = {}
    for length in {len(ids) for ids in tuples}:
        of_length = [ids for ids in tuples if len(ids) == length]
        ids_F, sizes_J = spelling.several(np.array(of_length))
        parts = np.split(ids_F, np.cumsum(sizes_J)[:-1])
        found |= {ids: tuple(part.tolist()) or None for ids, part in zip(of_length, parts, strict=True)}
    return [found[ids] for ids in tuples]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_tuples_keep_their_bytes(spellings, teacher, student):
    one, other, spelling = spellings(teacher, student)
    text = "In all, 1,247 naïve cafés sold $3.50 loaves of bread; that's 4364.5 per day.\n#### 42"
    ids = one.encode(text).ids_L.tolist()
    tuples = [tuple(ids[i : i + size]) for size in (2, 3) for i in range(len(ids) - size)]
    spelled = spelled_by(spelling, tuples)
    assert sum(tokens is not None for tokens in spelled) > 0.8 * len(tuples)
    for ids_of_tuple, tokens in zip(tuples, spelled, strict=True):
        if tokens is not None:
            assert other.token_bytes.join(tokens) == one.token_bytes.join(ids_of_tuple)
    assert spelled_by(spelling, tuples) == spelled


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_special_tokens_and_ids_without_a_token_have_no_spelling(spellings, teacher, student):
    one, _, spelling = spellings(teacher, student)
    specials = np.array([*np.flatnonzero(one.is_special_V), one.vocab_size, one.vocab_size + 6], np.int32)
    assert (spelling.single(specials, np.ones(len(specials), np.int32)) == -1).all()
    assert spelled_by(spelling, [(one.eos_id, 5), (5, one.vocab_size + 1)]) == [None, None]


def test_parts_of_characters_are_spelled_where_a_token_has_the_same_bytes(spellings):
    one, other, spelling = spellings("falcon", "qwen")
    by_bytes = {one.token_bytes.of(i): i for i in range(one.vocab_size)}
    lead = by_bytes["é".encode()[:1]]
    (spelled,) = spelling.single(np.array([lead], np.int32), np.ones(1, np.int32)).tolist()
    assert other.token_bytes.of(spelled[0]) == "é".encode()[:1]
    assert spelled_by(spelling, [(lead, lead)]) == [None]


def test_in_one_vocabulary_every_token_is_itself(small):
    ids = np.arange(small.vocab_size, dtype=np.int32)
    assert Spelling(small, small, small.vocab_size).single(ids, np.ones_like(ids))[:, 0].tolist() == ids.tolist()


def test_what_was_spelled_is_found_again_however_much_there_is():
    random, remembered, expected = np.random.default_rng(0), Remembered(2), {}
    for size in (1, 3, 900, 2000):
        new = {tuple(ids) for ids in random.integers(0, 60, (size, 2)).tolist()} - expected.keys()
        spelled = {ids: ids[: ids[0] % 3] for ids in new}
        remembered.add(list(spelled), list(spelled.values()))
        expected |= spelled
        tuples_JM = random.integers(0, 60, (500, 2))
        number_J = remembered.find(tuples_JM)
        is_known_J = np.array([tuple(ids) in expected for ids in tuples_JM.tolist()])
        assert np.array_equal(number_J >= 0, is_known_J)
        ids_F, sizes_J = remembered.spellings(number_J[is_known_J])
        wanted = [expected[tuple(ids)] for ids in tuples_JM[is_known_J].tolist()]
        assert sizes_J.tolist() == [len(ids) for ids in wanted]
        assert ids_F.tolist() == [i for ids in wanted for i in ids]
    assert len(remembered) == len(expected)
