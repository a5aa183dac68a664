"""Conditional chunks: further forwards show the first true tokens of a chunk, and what follows is given these."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from helpers.pair_examples import one_to_one
from helpers.target_examples import end_to_end
from tide_cache.config.sections import SignalsConfig
from tide_cache.errors import TeacherOutputError
from tide_cache.modeling.backbone import Backbone
from tide_cache.records import MaskedView, SampleId, SamplePair
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.teacher.conditional import shown_and_asked

VOCAB, MASK, LENGTH, BLOCK = 4, 4, 6, 3
TRUE = np.array([2, 0, 3, 1, 2, 1], np.int32)
CHUNKS_C4 = np.array([[0, 1, 0, 1], [1, 3, 1, 2], [3, 6, 2, 4]], np.int32)
"""One token; two tokens that the student writes in one; three that it writes in two."""
PAIR = SamplePair(SampleId("s"), np.array([9, 8, 7, 6], np.int32), np.ones(4, bool), TRUE, CHUNKS_C4)


def view_of(masked, pair=PAIR):
    student = np.zeros(len(pair.student_ids_L), bool)
    for start, _, first, last in pair.chunks_C4.tolist():
        student[first:last] = masked[start]
    return MaskedView(pair.sample_id, 0, 1.0, student, np.array(masked, bool))


ALL = view_of([1] * LENGTH)


class Joint(Backbone):
    """A teacher with a known joint distribution over all texts: what it says of a masked token is the marginal given
    the tokens that it sees, exactly."""

    def __init__(self, seed=0):
        super().__init__(nn.Identity())
        weights = 2 * torch.randn(VOCAB**LENGTH, generator=torch.Generator().manual_seed(seed)).double()
        self.joint = weights.softmax(dim=0).reshape((VOCAB,) * LENGTH).numpy()
        self.num_forwards = 0

    @property
    def head_VD(self):
        return torch.eye(VOCAB)

    @property
    def device(self):
        return torch.device("cpu")

    def given(self, seen, place):
        """Distribution of a token, given others by place."""
        joint = self.joint[tuple(seen.get(i, slice(None)) for i in range(LENGTH))]
        free = [i for i in range(LENGTH) if i not in seen]
        summed = joint.sum(axis=tuple(axis for axis, i in enumerate(free) if i != place))
        return summed / summed.sum()

    def forward(self, packed):
        self.num_forwards += 1
        logits = torch.zeros(*packed.ids_BS.shape, VOCAB)
        for b, ids in enumerate(packed.ids_BS.tolist()):
            seen = {i: token for i, token in enumerate(ids) if token != MASK}
            for i in range(LENGTH):
                if i not in seen:
                    logits[b, i] = torch.from_numpy(np.log(self.given(seen, i)))
        return logits


class Spelling:
    """A tuple is spelled by one student token for each of its teacher tokens, the last two as one."""

    num_student_ids = 100
    first_V = np.arange(VOCAB, dtype=np.int32)

    def single(self, ids_J, sizes_J):
        return ids_J[:, None]

    def of(self, ids):
        return ids if len(ids) == 1 else (*ids[:-2], 10 + VOCAB * ids[-2] + ids[-1])

    def several(self, tuples_JM):
        return end_to_end([self.of(ids) for ids in tuples_JM.tolist()])


KINDS = ("truth", "chunks", "projected")


def settings_of(passes, **signals):
    options = {"kinds": KINDS, "top_k": VOCAB, "top_p": 1.0, "chunk_k": VOCAB**3, "temperatures": (1.0, 2.0)} | signals
    return CaptureSettings("full", 1, MASK, 0, 1, 10**9, 4, SignalsConfig(chunk_passes=passes, **options))


def captured(teacher, passes, view=ALL, pair=PAIR, **signals):
    ((signal,),) = Teacher(teacher, settings_of(passes, **signals), Spelling()).signals([pair], [[view]])
    return signal


@pytest.fixture(scope="module")
def teacher():
    return Joint()


@pytest.mark.parametrize("masked", [[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1]])
def test_the_truth_of_a_chunk_is_the_chain_rule(teacher, masked):
    """With one long chunk masked, its summed log-probs are the joint's own probability of its text given the view."""
    signal = captured(teacher, 2, view_of(masked), kinds=("truth",))
    seen = {i: TRUE[i] for i in range(LENGTH) if not masked[i]}
    expected = []
    for start, end, _, _ in CHUNKS_C4.tolist():
        so_far = dict(seen)
        for i in range(start, end):
            if masked[i]:
                expected.append(np.log(teacher.given(so_far, i)[TRUE[i]]))
                so_far[i] = TRUE[i]
    np.testing.assert_allclose(signal.truth_logprobs_N, expected, atol=1e-5)


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_a_tuple_is_judged_by_the_forward_that_showed_its_true_beginning(teacher, passes):
    """Against every tuple: with each chunk's other tokens as all chunks of several are shown together."""
    signal = captured(teacher, passes)
    candidates, at, token_at = signal.chunks, 0, 0
    assert candidates.counts_A.tolist() == [VOCAB, VOCAB**2, VOCAB**3]
    for a, (start, end, first, last) in enumerate(CHUNKS_C4.tolist()):
        expected = {}
        for ids in product(range(VOCAB), repeat=end - start):
            true = 0
            logprob = 0.0
            for m, token in enumerate(ids):
                shown = min(true, passes)
                seen = {
                    s + k: TRUE[s + k]
                    for s, e, _, _ in CHUNKS_C4.tolist()
                    for k in range(shown if e - s > shown else 0)
                }
                logprob += np.log(teacher.given(seen, start + m)[token])
                true += true == m and token == TRUE[start + m]
            is_true = ids == tuple(TRUE[start:end])
            spelled = tuple(PAIR.student_ids_L[first:last]) if is_true else Spelling().of(ids)
            expected[spelled] = logprob
        size, count = last - first, int(candidates.counts_A[a])
        texts = candidates.ids_F[token_at : token_at + size * count].reshape(count, size).tolist()
        found = dict(zip(map(tuple, texts), candidates.logprobs_J[at : at + count], strict=True))
        assert found == pytest.approx(expected, abs=1e-4)
        assert sum(np.exp(list(expected.values()))) == pytest.approx(1)
        assert np.exp(candidates.log_tail_AT[a]) == pytest.approx(0, abs=1e-6)
        partition = np.log(np.exp(np.array(list(expected.values())) / 2).sum())
        assert candidates.log_partition_AT[a].tolist() == pytest.approx([0, partition], abs=1e-5)
        at, token_at = at + count, token_at + size * count


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_candidates_and_tail_are_the_whole_whatever_is_cut_off(teacher, passes, top_k):
    """Also where the true token is among those that were not kept."""
    whole = captured(teacher, passes)
    signal = captured(teacher, passes, top_k=top_k, chunk_k=3, top_p=0.6)
    owner = np.repeat(np.arange(3), signal.chunks.counts_A)
    for index, temperature in enumerate((1.0, 2.0)):
        kept = np.bincount(owner, weights=np.exp(signal.chunks.logprobs_J / temperature), minlength=3)
        every = np.exp(signal.chunks.log_partition_AT[:, index])
        np.testing.assert_allclose(kept + np.exp(signal.chunks.log_tail_AT[:, index]), every, rtol=1e-5)
    assert (np.diff(signal.chunks.logprobs_J)[np.diff(owner) == 0] <= 0).all()
    np.testing.assert_allclose(signal.truth_logprobs_N, whole.truth_logprobs_N, atol=1e-6)


def test_what_is_projected_at_the_first_token_is_summed_from_the_same_tuples(teacher):
    """At the second chunk's only student token, with all tuples as candidates: the same numbers as its candidates."""
    signal = captured(teacher, 1)
    row = signal.projected.rows_R.tolist().index(1)
    start = int(signal.projected.counts_R[:row].sum())
    ids, logprobs = (x[start : start + VOCAB**2] for x in (signal.projected.ids_E, signal.projected.logprobs_E))
    first = int(signal.chunks.counts_A[0])
    spelled = dict(zip(signal.chunks.ids_F[first:], signal.chunks.logprobs_J[first : first + VOCAB**2], strict=False))
    assert dict(zip(ids.tolist(), logprobs.tolist(), strict=True)) == pytest.approx(
        {int(i): float(x) for i, x in spelled.items()}, abs=1e-5
    )


def test_without_longer_chunks_nothing_is_asked_again():
    pair = one_to_one("s", LENGTH, VOCAB)
    view, plain, passes = view_of([1] * LENGTH, pair), Joint(1), Joint(1)
    one, other = captured(plain, 0, view, pair), captured(passes, 3, view, pair)
    assert passes.num_forwards == plain.num_forwards == 1
    np.testing.assert_array_equal(one.truth_logprobs_N, other.truth_logprobs_N)
    np.testing.assert_array_equal(one.chunks.logprobs_J, other.chunks.logprobs_J)
    np.testing.assert_array_equal(one.projected.logprobs_E, other.projected.logprobs_E)


def test_chunks_that_are_complete_stay_masked_and_hidden_ones_alone_count():
    shown, asked = shown_and_asked([(PAIR, [ALL, view_of([1, 1, 1, 0, 0, 0])])], LENGTH + 1, 2)
    assert np.argwhere(shown).tolist() == [[0, 0, 3], [0, 0, 4]]
    assert np.argwhere(asked).tolist() == [[0, 0, 5]]


def test_complementary_forwards_are_asked_again_one_by_one(teacher):
    """Each side of CompDemo shows what the other masks; a chunk of it is asked for token after token."""
    plain = Teacher(teacher, settings_of(2, kinds=("truth",)), Spelling())
    ((signal,),) = compdemo_signals(plain, [PAIR], [[ALL]], 3, 0.5)
    is_first = signal.is_shown_first_N
    assert is_first.any()
    assert not is_first.all()
    for side in (is_first, ~is_first):
        alone = captured(teacher, 2, view_of(side), kinds=("truth",))
        np.testing.assert_allclose(signal.truth_logprobs_N[side], alone.truth_logprobs_N, atol=1e-6)


def test_what_is_not_finite_in_a_further_forward_is_named(teacher):
    class Broken(Joint):
        def forward(self, packed):
            return super().forward(packed) / (self.num_forwards < 2)

    with pytest.raises(TeacherOutputError, match=r"sample 's', view 0"):
        captured(Broken(), 1)
