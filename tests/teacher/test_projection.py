"""The signal `projected`: the teacher's distribution in the student's vocabulary, against all texts of small ones."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from helpers.target_examples import end_to_end
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.backbone import Backbone
from tide_cache.records import MaskedView, SampleId, SamplePair
from tide_cache.teacher.capture import CaptureSettings, Teacher

TEACHER = ["a", "b", "ab", "ba", "c", "abc", "\x00"]
"""Texts of teacher ids; the last one no student can write."""
STUDENT = ["a", "b", "c", "ab"]


def written(text):
    """Student ids of a text, the longest first; None where it cannot be written."""
    ids = []
    while text:
        best = max((s for s in STUDENT if text.startswith(s)), key=len, default=None)
        if best is None:
            return None
        ids.append(STUDENT.index(best))
        text = text[len(best) :]
    return tuple(ids)


class Spelling:
    num_student_ids = len(STUDENT)

    def __init__(self):
        first = [written(text) for text in TEACHER]
        self.first_V = np.array([ids[0] if ids else len(STUDENT) for ids in first], np.int32)

    def single(self, ids_J, sizes_J):
        raise AssertionError("not asked for here")

    def several(self, tuples_JM):
        return end_to_end([written("".join(TEACHER[i] for i in ids)) for ids in tuples_JM.tolist()])


class Given(Backbone):
    def __init__(self, logits_BLV):
        super().__init__(nn.Identity())
        self._logits_BLV = logits_BLV

    @property
    def head_VD(self):
        return torch.eye(self._logits_BLV.shape[2])

    @property
    def device(self):
        return torch.device("cpu")

    def forward(self, packed):
        return self._logits_BLV


# One chunk each of 1 to 1, 1 to 2 ("ba" is b, a), 2 to 1 ("a", "b" is ab) and 2 to 3 ("ba", "c" is b, a, c).
TEACHER_IDS = np.array([4, 3, 0, 1, 3, 4], np.int32)
STUDENT_IDS = np.array([2, 1, 0, 3, 1, 0, 2], np.int32)
CHUNKS_C4 = np.array([[0, 1, 0, 1], [1, 2, 1, 3], [2, 4, 3, 4], [4, 6, 4, 7]], np.int32)
PAIR = SamplePair(SampleId("s"), STUDENT_IDS, np.ones(7, bool), TEACHER_IDS, CHUNKS_C4)
VIEW = MaskedView(PAIR.sample_id, 0, 1.0, np.ones(7, bool), np.ones(6, bool))


def captured(logits_LV, pair=PAIR, view=VIEW, **signals):
    options = {"kinds": ("truth", "projected"), "top_k": 7, "top_p": 1.0, "chunk_k": 49} | signals
    settings = CaptureSettings("full", 1, 99, 0, 1, 10**9, 4, SignalsConfig(temperatures=(1.0, 2.0), **options))
    ((signal,),) = Teacher(Given(logits_LV[None]), settings, Spelling()).signals([pair], [[view]])
    return signal.projected


def rows_of(projected):
    """Probabilities by student id, tail and partition of each row, as dictionaries."""
    result, start = {}, 0
    for entry, (row, count) in enumerate(zip(projected.rows_R, projected.counts_R, strict=True)):
        ids, logprobs = (x[start : start + count] for x in (projected.ids_E, projected.logprobs_E))
        kept = dict(zip(ids.tolist(), np.exp(logprobs.astype(float)).tolist(), strict=True))
        result[int(row)] = kept, np.exp(projected.log_tail_RT[entry]), projected.log_partition_RT[entry]
        start += count
    return result


def expected_rows(probs_LV):
    """All texts of every chunk, by what they say at each of its student tokens."""
    result = {}
    for start, end, first, last in CHUNKS_C4.tolist():
        for place in range(last - first):
            kept, tail = {}, 0.0
            for ids in product(range(len(TEACHER)), repeat=end - start):
                mass = np.prod([probs_LV[start + m, i] for m, i in enumerate(ids)])
                spelled = written("".join(TEACHER[i] for i in ids))
                true = tuple(STUDENT_IDS[first : first + place].tolist())
                if spelled is not None and spelled[:place] == true and len(spelled) > place:
                    kept[spelled[place]] = kept.get(spelled[place], 0) + mass
                elif not place:
                    tail += mass
            whole = sum(kept.values()) + tail
            result[first + place] = {i: mass / whole for i, mass in kept.items()}, tail / whole
    return result


@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_the_sum_over_all_texts(seed):
    logits_LV = 2 * torch.randn(6, 7, generator=torch.Generator().manual_seed(seed))
    expected = expected_rows(logits_LV.double().softmax(dim=1).numpy())
    found = rows_of(captured(logits_LV))
    assert found.keys() == expected.keys()
    for row, (kept, tail) in expected.items():
        assert found[row][0] == pytest.approx(kept, rel=1e-4)
        assert found[row][1][0] == pytest.approx(tail, rel=1e-3, abs=1e-6)
        assert found[row][2][0] == pytest.approx(0, abs=1e-5)


def test_rows_are_sorted_and_what_is_cut_off_is_tail():
    logits_LV = torch.randn(6, 7, generator=torch.Generator().manual_seed(5))
    projected = captured(logits_LV, top_k=2, top_p=0.5)
    assert (np.diff(projected.rows_R) > 0).all()
    for kept, tail, _ in rows_of(projected).values():
        assert list(kept.values()) == sorted(kept.values(), reverse=True)
        assert sum(kept.values()) + tail[0] == pytest.approx(1, abs=1e-5)


def test_at_another_temperature_chunks_of_one_teacher_token_are_exact():
    logits_LV = torch.randn(6, 7, generator=torch.Generator().manual_seed(6))
    whole = rows_of(captured(logits_LV))[0]
    probs = np.array([*whole[0].values(), whole[1][0]])
    assert whole[2][1] == pytest.approx(np.log(np.sqrt(probs).sum()), abs=1e-5)


def test_the_true_text_keeps_its_own_first_token():
    """ "ba" stands in the sample as b, a; were it a token of the student's own, it would still count for b."""
    logits_LV = torch.full((6, 7), -30.0)
    logits_LV[torch.arange(6), torch.from_numpy(TEACHER_IDS).long()] = 30.0
    pair = SamplePair(PAIR.sample_id, np.array([2, 3, 3, 3, 1, 0, 2], np.int32), *vars_of(PAIR))
    kept, _, _ = rows_of(captured(logits_LV, pair))[1]
    assert kept[3] == pytest.approx(1)


def vars_of(pair):
    return pair.is_supervised_L, pair.teacher_ids_M, pair.chunks_C4


def test_views_and_hidden_chunks_keep_their_own_rows():
    """A view that masks some chunks has rows for their tokens only, counted among its masked ones."""
    masked = MaskedView(
        PAIR.sample_id,
        0,
        0.5,
        np.array([0, 1, 1, 0, 1, 1, 1], bool),
        np.array([0, 1, 0, 0, 1, 1], bool),
    )
    logits_LV = torch.randn(6, 7, generator=torch.Generator().manual_seed(7))
    whole, part = rows_of(captured(logits_LV)), rows_of(captured(logits_LV, view=masked))
    assert sorted(part) == [0, 1, 2, 3, 4]
    for row, of_whole in zip(range(5), (1, 2, 4, 5, 6), strict=True):
        assert part[row][0] == pytest.approx(whole[of_whole][0])
