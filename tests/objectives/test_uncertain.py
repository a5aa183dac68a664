"""`row_weight = "uncertain"`: a share of each view's rows or chunks, those of which the student is least sure."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tide_cache.config.objectives import AnyObjective
from tide_cache.objectives.base import has_candidates
from tide_cache.objectives.chunk_kl import ChunkKL
from tide_cache.objectives.kl import ForwardKL, ReverseKL
from tide_cache.objectives.uncertain import NEAR_ONE, entropy, most_uncertain
from tide_cache.records import RowStatistics

MADE = {
    "kl": lambda **how: ForwardKL(1.0, **how),
    "kl kept": lambda **how: ForwardKL(2.0, temperature_mode="kept", **how),
    "reverse_kl": lambda **how: ReverseKL(1.0, **how),
    "chunk_kl": lambda **how: ChunkKL(2.0, temperature_mode="kept", **how),
}
OF_CHUNKS = {"chunk_size": 2, "chunk_k": 4}


def make_case(example, name, **more):
    return example(3, num_samples=3, length=12, vocab=8, **(OF_CHUNKS if "chunk" in name else {}), **more)


def test_the_entropy_is_that_of_the_whole_vocabulary():
    logits_NV = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    log_z_NT = torch.stack([(logits_NV / t).logsumexp(1) for t in (1.0, NEAR_ONE)], dim=1)
    found_N = entropy(RowStatistics(logits_NV, log_z_NT, log_z_NT, (1.0, NEAR_ONE)))
    q_NV = logits_NV.double().softmax(1)
    order = 1 / NEAR_ONE
    torch.testing.assert_close(found_N.double(), (q_NV**order).sum(1).log() / (1 - order), atol=1e-3, rtol=0)
    shannon_N = -(q_NV * q_NV.log()).sum(1)
    assert (found_N - shannon_N).abs().max() < 0.1
    assert {*found_N.topk(10).indices.tolist()} == {*shannon_N.topk(10).indices.tolist()}


@pytest.mark.parametrize("name", MADE)
def test_all_of_the_rows_are_even(example, name):
    case, make = make_case(example, name), MADE[name]
    whole = make(row_weight="uncertain", share=1.0)
    assert whole.count(case.targets) == make().count(case.targets)
    torch.testing.assert_close(case.gradient(whole), case.gradient(make()))


@pytest.mark.parametrize("name", MADE)
def test_the_least_sure_of_each_view_are_taught_and_no_others(example, name):
    case, make = make_case(example, name), MADE[name]
    chosen = make(row_weight="uncertain", share=0.4)
    gradient_NV, even_NV = case.gradient(chosen), case.gradient(make())
    is_taught_N, had_N = (found_NV.abs().sum(1) > 0 for found_NV in (gradient_NV, even_NV))
    torch.testing.assert_close(gradient_NV, even_NV * is_taught_N[:, None])
    log_q_NV = case.logits_NV.detach().log_softmax(1)
    doubt_N = ((log_q_NV / NEAR_ONE).logsumexp(1)) / (1 - 1 / NEAR_ONE)
    unit_N = case.targets.truth.chunk_of_row_N
    num_taught = 0
    for view in case.targets.view_N.unique():
        units = unit_N[had_N & (case.targets.view_N == view)].unique()
        doubt_U = torch.stack([doubt_N[unit_N == unit].mean() for unit in units])
        taught_U = torch.stack([is_taught_N[unit_N == unit].all() for unit in units])
        assert int(taught_U.sum()) == math.ceil(0.4 * len(units))
        assert doubt_U[taught_U].min() >= doubt_U[~taught_U].max()
        num_taught += int(taught_U.sum())
    assert chosen.count(case.targets) == num_taught


@pytest.mark.parametrize("name", MADE)
def test_other_samples_of_the_batch_change_nothing(example, name):
    """So neither ranks, nor micro-batches, nor the order of samples change what is taught."""
    chosen = MADE[name](row_weight="uncertain", share=0.3)
    whole = make_case(example, name)
    parts = [make_case(example, name, samples=range(b, b + 1)) for b in range(3)]
    assert sum(chosen.count(part.targets) for part in parts) == chosen.count(whole.targets)
    torch.testing.assert_close(torch.cat([part.gradient(chosen) for part in parts]), whole.gradient(chosen))


def test_shares_are_rounded_up_and_equals_are_taken_in_order():
    view_U = torch.tensor([0] * 30 + [-1] + [1] * 3)
    chosen_U = most_uncertain(torch.zeros(34), view_U, 0.1)
    assert chosen_U.nonzero().flatten().tolist() == [0, 1, 2, 31]


def test_chunks_without_candidates_are_not_chosen(example):
    case = make_case(example, "chunk_kl")
    has_C = has_candidates(case.targets)
    chosen = MADE["chunk_kl"](row_weight="uncertain")
    ones_C = torch.ones(len(has_C))
    has_C[::2] = False
    taught_C = chosen.of_chunks(ones_C, has_C, case.targets) > 0
    assert taught_C.any()
    assert not (taught_C & ~has_C).any()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "ce", "row_weight": "uncertain"}, "ce teaches every row"),
        ({"kind": "kl", "row_weight": "uncertain", "elsewhere": "truth"}, "drop one"),
        ({"kind": "chunk_kl", "row_weight": "uncertain", "elsewhere": "truth"}, "drop one"),
        ({"kind": "kl", "row_weight": "uncertain", "per": "chunk"}, "counts rows; drop one"),
        ({"kind": "kl", "row_weight": "uncertain", "share": 0.0}, "greater than 0"),
    ],
)
def test_what_cannot_be_chosen_is_refused(entry, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AnyObjective).validate_python(entry)
