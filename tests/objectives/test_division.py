"""The trainer's one division: sums of all micro-batches by counts of all, below one too, and nothing by nothing."""

import math
from dataclasses import replace

import pytest
import torch
from torch import distributed

from tide_cache.objectives.calm import Calm
from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.kl import ForwardKL
from tide_cache.objectives.tidal import Tidal
from tide_cache.records import StudentBatch
from tide_cache.student.row_statistics import row_statistics
from tide_cache.training.distributed import World
from tide_cache.training.notes import Notes
from tide_cache.training.step import StepSums, train_step
from tide_cache.training.window import Window

MIDRANGE = Tidal("kl", 2.0, time_weight="midrange", axes="training_only")
NO_IDS = torch.zeros(1, 0, dtype=torch.int64)
NO_BATCH = StudentBatch(NO_IDS, NO_IDS, NO_IDS, NO_IDS[0], NO_IDS[0])


@pytest.fixture(autouse=True)
def one_process():
    """A group of this process alone, unless an earlier test has left one."""
    if distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class TableOfLogits:
    """What a step needs of an engine, for a student whose logits are its parameters: the rows of each micro-batch."""

    device = torch.device("cpu")

    def __init__(self, cases):
        self.logits = [case.logits_NV.detach().clone().requires_grad_() for case in cases]
        self._next = iter(self.logits)

    def __call__(self, batch, ids_NK, is_kept_NK, temperatures):
        logits_NV = next(self._next)
        found = row_statistics(logits_NV, torch.eye(logits_NV.shape[1]), ids_NK, temperatures, is_kept_NK)
        return found.gathered_NK, found.log_z_NT, found.log_rest_NT

    def backward(self, loss, scale_wrt_gas):
        loss.backward()

    def step(self):
        pass


def step(cases, objective):
    """Take a step; gives its mean and the gradient in all logits."""
    engine = TableOfLogits(cases)
    micro_batches = [(NO_BATCH, case.targets) for case in cases]
    sums = train_step(engine, micro_batches, [objective], World(0, 1, 0))
    return (sums.totals_O / sums.counts_O).item(), torch.cat([logits_NV.grad for logits_NV in engine.logits])


@pytest.mark.parametrize("objective", [CrossEntropy(), ForwardKL(2.0), Calm(2.0), MIDRANGE], ids=repr)
def test_a_step_of_unequal_micro_batches_is_a_step_of_one_batch(example, objective):
    parts = [example(3, num_samples=6, samples=samples) for samples in (range(1), range(1, 6))]
    mean, gradient_NV = step([example(3, num_samples=6)], objective)
    accumulated, accumulated_NV = step(parts, objective)
    assert accumulated == pytest.approx(mean, rel=1e-5)
    torch.testing.assert_close(accumulated_NV, gradient_NV, rtol=1e-4, atol=1e-6)


def test_a_sum_of_weights_below_one_divides_too(example):
    """Far from t = 0.5 a whole step may weigh less than one row; it is still a weighted mean."""
    case = example(0)
    t_N = torch.full_like(case.targets.t_N, 0.95)
    case = replace(case, targets=replace(case.targets, t_N=t_N))
    sum_of_weights = len(t_N) * math.exp(-(0.45**2) / 0.045)
    assert sum_of_weights < 0.5
    mean, gradient_NV = step([case], MIDRANGE)
    assert mean == pytest.approx(case.loss(MIDRANGE).item() / sum_of_weights, rel=1e-4)
    torch.testing.assert_close(gradient_NV, case.gradient(MIDRANGE) / sum_of_weights, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_row_has_a_zero_gradient_and_no_nan(example):
    case = example(0, is_supervised=False)
    engine = TableOfLogits([case])
    sums = train_step(engine, [(NO_BATCH, case.targets)], [MIDRANGE], World(0, 1, 0))
    assert sums.totals_O.tolist() == sums.counts_O.tolist() == [0.0]


def test_a_line_of_metrics_divides_alike():
    window = Window(2, torch.device("cpu"))
    for total in (0.05, 0.10):
        no_rows_B, no_notes = torch.zeros(10), Notes(torch.zeros(0))
        sums = StepSums(torch.tensor([total, 0.0]), torch.tensor([0.1, 0.0]), no_rows_B, no_rows_B, no_notes)
        window.add(sums, num_tokens=1, stall_s=0.0)
    figures = window.close()
    assert figures.means == pytest.approx([0.75, 0.0])
    assert figures.nll_by_t == [None] * 10
