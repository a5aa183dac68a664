"""The counters of `ranks` and what is made of them; no process is started."""

import time

import pytest
import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.rank_process import Counters, Step
from tide_cache.training.distributed import World
from tide_cache.training.meeting import join


def wait_a_little():
    time.sleep(0.01)


def test_seconds_count_for_the_inner_call():
    counters = Counters()
    inner = counters.timed("optimizer", wait_a_little)
    counters.timed("engine", lambda: [wait_a_little(), inner()])()
    counters.close_step()
    (step,) = counters.steps
    assert step.wall_s["optimizer"] >= 0.01
    assert step.wall_s["engine"] >= 0.01
    assert step.cpu_s["optimizer"] < step.wall_s["optimizer"], "sleeping computes nothing"


def test_bytes_of_the_engines_collectives_are_counted_and_small_sums_are_not():
    join(World(0, 1, 0), "cpu")
    counters = Counters()
    summed = counters.collective("all_reduce", dist.all_reduce)
    numbers = torch.ones(100)
    counters.timed("engine", lambda: summed(numbers, async_op=True).wait())()
    counters.timed("engine", summed)(numbers)
    counters.timed("objectives", summed)(numbers)
    counters.close_step()
    assert dict(counters.steps[0].sent) == {"bytes": 800, "calls": 2, "all_reduce": 2}
    assert counters.steps[0].wall_s["small_sums"] > 0


def step(busy_s, computed=10):
    return Step(process_cpu_s=busy_s, computed=computed, tokens=8)


def test_ranks_wait_for_the_one_with_most_to_do_in_every_step_and_runs_apart_do_not():
    of_processes = [[step(1.0, 8), step(3.0)], [step(2.0, 12), step(1.0)]]
    assert ranks.Turn(0.0, of_processes).busy_s == 5.0
    assert ranks.Turn(0.0, of_processes, talks=False).busy_s == 4.0
    one = ranks.Turn(12.0, [[step(5.0), step(5.0)]])
    rounds = [{"one": one, "stage0": ranks.Turn(8.0, of_processes)}] * 2
    figures = ranks.figures_of(rounds, "stage0", ranks.ARMS["stage0"])
    assert (figures["speed_up"], figures["speed_up_of_cpu"]) == (1.5, 2.0)
    assert (figures["computed_tokens"], figures["busiest_tokens"]) == (10.0, 11.0)
    assert figures["cpu_ms_all"] == pytest.approx(1750)
