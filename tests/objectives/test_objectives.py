"""What every objective must keep: counts, micro-batches, padding, empty batches, and the run file's entries."""

from dataclasses import fields, replace

import pytest
import torch

from helpers.target_examples import changed, leaves
from tide_cache.config.objectives import OBJECTIVE_KINDS
from tide_cache.config.train import read_objectives
from tide_cache.objectives import OBJECTIVES, Needs, objective_of, union_of_needs
from tide_cache.objectives.calm import BernoulliKL, Calm, ReverseCalm
from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.chunk_kl import ChunkKL
from tide_cache.objectives.kl import ForwardKL, ReverseKL
from tide_cache.objectives.tidal import Tidal
from tide_cache.views import active_chunks

EVERY = [
    CrossEntropy("scheduler"),
    CrossEntropy("realised_ratio"),
    CrossEntropy("uniform"),
    ForwardKL(2.0),
    ReverseKL(2.0),
    Calm(5.0),
    ReverseCalm(5.0),
]
TAUGHT = [objective for objective in EVERY if objective.needs.signals]
every_objective = pytest.mark.parametrize("objective", EVERY, ids=repr)


@every_objective
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_micro_batches_sum_to_the_whole_in_loss_count_and_gradient(example, objective, chunk_size):
    whole = example(3, num_samples=4, chunk_size=chunk_size)
    parts = [example(3, num_samples=4, chunk_size=chunk_size, samples=samples) for samples in (range(1), range(1, 4))]
    assert sum(objective.count(part.targets) for part in parts) == objective.count(whole.targets) > 0 or chunk_size == 2
    total = sum(part.loss(objective).item() for part in parts)
    assert whole.loss(objective).item() == pytest.approx(total, rel=1e-5)
    gradients = torch.cat([part.gradient(objective) for part in parts])
    torch.testing.assert_close(whole.gradient(objective), gradients, rtol=1e-5, atol=1e-6)


def test_counts_are_those_of_what_is_summed(example):
    case = example(0, num_samples=3, length=12, chunk_size=1)
    num_masked = sum(int(view.is_student_masked_L.sum()) for view in case.views)
    num_active = sum(int(active_chunks(pair, view).sum()) for pair, view in zip(case.pairs, case.views, strict=True))
    assert num_active == num_masked > 0
    for objective in EVERY:
        is_per_supervised = objective in EVERY[:2]
        assert objective.count(case.targets) == (36 if is_per_supervised else num_masked), objective
    joined = example(0, num_samples=3, length=12, chunk_size=3)
    num_chunks = sum(
        int(active_chunks(pair, view).sum()) for pair, view in zip(joined.pairs, joined.views, strict=True)
    )
    assert Calm().count(joined.targets) == ReverseCalm().count(joined.targets) == num_chunks
    assert ForwardKL().count(joined.targets) == 0, "chunks of three tokens are not aligned pairs"


@every_objective
def test_padding_of_kept_ids_changes_nothing(example, objective):
    case = example(0, top_k=4)
    pad_N3 = torch.full((len(case.logits_NV), 3), -1)
    targets = changed(
        case.targets,
        kept_ids_NK=torch.cat([case.targets.topk.kept_ids_NK, pad_N3], dim=1),
        kept_logprobs_NK=torch.cat([case.targets.topk.kept_logprobs_NK, torch.full(pad_N3.shape, -torch.inf)], dim=1),
    )
    padded = replace(case, targets=targets)
    torch.testing.assert_close(padded.loss(objective), case.loss(objective))
    torch.testing.assert_close(padded.gradient(objective), case.gradient(objective))


@pytest.mark.parametrize("objective", [ForwardKL(2.0), ReverseKL(2.0)], ids=repr)
@pytest.mark.parametrize("top_p", [0.5, 0.9])
def test_ragged_rows_equal_each_row_alone(example, objective, top_p):
    case = example(0, top_k=12, top_p=top_p)
    counts_N = (case.targets.topk.kept_ids_NK >= 0).sum(dim=1)
    assert len(set(counts_N.tolist())) > 1
    per_row, arrays = [], leaves(case.targets)
    for n in range(len(counts_N)):
        one = {
            name: arrays[name][n : n + 1]
            for name in (
                "true_id_N",
                "t_N",
                "time_weight_N",
                "mask_weight_N",
                "log_tail_NT",
                "extra_ids_NX",
            )
        }
        kept = {name: arrays[name][n : n + 1, : counts_N[n]] for name in ("kept_ids_NK", "kept_logprobs_NK")}
        partition = {"log_partition_NT": case.targets.topk.log_partition_NT[n : n + 1]}
        partition["rows_R"] = case.targets.topk.has_topk_N[n : n + 1].nonzero().squeeze(1)
        row = replace(
            case, targets=changed(case.targets, **one, **kept, **partition), logits_NV=case.logits_NV[n : n + 1]
        )
        per_row.append(row.loss(objective).item())
    assert case.loss(objective).item() == pytest.approx(sum(per_row), rel=1e-5)


@every_objective
def test_nothing_masked_gives_a_zero_on_the_graph(example, objective):
    case = example(0, is_supervised=False)
    assert case.logits_NV.shape == (0, 12)
    loss = case.loss(objective)
    assert loss.item() == 0
    assert loss.requires_grad
    assert case.gradient(objective).shape == (0, 12)
    assert objective.count(case.targets) == 0


@pytest.mark.parametrize("objective", TAUGHT, ids=repr)
def test_rows_that_no_signal_reaches_give_a_zero_and_no_gradient(example, objective):
    case = example(0)
    num_rows = len(case.logits_NV)
    targets = changed(
        case.targets,
        rows_R=torch.zeros(0, dtype=torch.int64),
        kept_ids_NK=torch.zeros(num_rows, 0, dtype=torch.int64),
        kept_logprobs_NK=torch.zeros(num_rows, 0),
        chunk_of_row_N=torch.full((num_rows,), -1),
        chunk_logprob_C=torch.zeros(0),
        chunk_t_C=torch.zeros(0),
    )
    case = replace(case, targets=targets)
    assert case.loss(objective).item() == 0
    assert case.loss(objective).requires_grad
    assert (case.gradient(objective) == 0).all()
    assert objective.count(targets) == 0


def test_the_registry_holds_every_entry_of_the_run_file():
    assert tuple(OBJECTIVES) == OBJECTIVE_KINDS
    for kind, objective in OBJECTIVES.items():
        (entry,) = read_objectives([{"kind": kind}], "corrected")
        assert issubclass(objective, type(entry)), "its fields are declared there"
        assert fields(objective) == fields(entry), "and nowhere else"
        assert objective_of(entry) == objective(), "Python and a run file that say no more mean the same"


def test_needs_are_what_each_objective_reads():
    assert CrossEntropy().needs == Needs()
    assert ForwardKL(3.0).needs == Needs(frozenset({"topk"}), frozenset({3.0}), frozenset({3.0}))
    assert ReverseKL(3.0).needs == ForwardKL(3.0).needs
    assert Calm().needs == ReverseCalm().needs == Needs(frozenset({"truth"}))


def test_needs_add_up():
    together = union_of_needs([CrossEntropy().needs, ForwardKL(2.0).needs, ReverseKL(4.0).needs, Calm().needs])
    assert together == Needs(frozenset({"topk", "truth"}), frozenset({1.0, 2.0, 4.0}), frozenset({2.0, 4.0}))
    assert union_of_needs([]) == Needs()


FURTHER = [
    *(kl(2.0, tail) for kl in (ForwardKL, ReverseKL) for tail in ("renormalise", "sampled")),
    Calm(5.0, chunks="without_candidates"),
    Calm(5.0, clamp_student=True),
    BernoulliKL(5.0),
    ChunkKL(2.0),
    *(Tidal(over=over, time_weight=weight) for over in ("kl", "calm") for weight in ("uniform", "midrange")),
    Tidal(tail="renormalise"),
]


def test_the_next_test_leaves_no_objective_out():
    assert {type(objective) for objective in [*EVERY, *FURTHER]} == set(OBJECTIVES.values())


@pytest.mark.parametrize("objective", [*EVERY, *FURTHER], ids=repr)
def test_a_student_in_float64_gives_the_loss_of_float32_and_its_own_gradient(example, objective):
    """`row_statistics` keeps float64, and targets are float32."""
    if "topk" in objective.needs.signals:
        case = example(0, tail_samples=3)
    else:
        case = example(0, chunk_size=2, chunk_k=4 if isinstance(objective, ChunkKL) else 0)
    double = replace(case, logits_NV=case.logits_NV.detach().double().requires_grad_())
    assert double.loss(objective).dtype == torch.float64
    assert double.loss(objective).item() == pytest.approx(case.loss(objective).item(), rel=1e-5, abs=1e-6)
    gradient = double.gradient(objective)
    torch.testing.assert_close(gradient.float(), case.gradient(objective), rtol=1e-4, atol=1e-5)
    assert gradient.abs().sum() > 0


@every_objective
def test_a_batch_with_the_statistics_of_others_gives_the_same_loss(example, objective):
    """The trainer computes the union of temperatures once for all objectives."""
    case = example(0, temperatures=(1.0, 2.0, 4.0))
    together = union_of_needs([*(other.needs for other in EVERY), Needs(student_temperatures=frozenset({4.0, 0.5}))])
    pretender = _With(objective, together)
    assert case.loss(pretender).item() == pytest.approx(case.loss(objective).item(), rel=1e-6)


class _With:
    """An objective that asks for more than it reads."""

    def __init__(self, objective, needs):
        self.needs, self.total, self.count = needs, objective.total, objective.count
