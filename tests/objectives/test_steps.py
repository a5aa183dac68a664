"""`row_weight`: soon and later share the rows between them, and each teaches its own rows alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.chunk_kl import ChunkKL
from tide_cache.objectives.kl import ForwardKL, ReverseKL

quick = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MADE = {
    "ce": lambda **how: CrossEntropy(time_weight="uniform", **how),
    "kl": lambda **how: ForwardKL(1.0, **how),
    "kl kept": lambda **how: ForwardKL(2.0, temperature_mode="kept", elsewhere="truth", **how),
    "reverse_kl": lambda **how: ReverseKL(1.0, **how),
    "chunk_kl": lambda **how: ChunkKL(1.0, **how),
    "chunk_kl truth": lambda **how: ChunkKL(1.0, elsewhere="truth", **how),
}


def with_steps(case, steps_N):
    """The case, each chunk's rows with one number of steps."""
    chunk_N = case.targets.truth.chunk_of_row_N
    first = {}
    steps = [first.setdefault(int(c), int(s)) if c >= 0 else int(s) for c, s in zip(chunk_N, steps_N, strict=True)]
    return replace(case, targets=replace(case.targets, steps_to_reveal_N=torch.tensor(steps, dtype=torch.int64)))


@pytest.mark.parametrize("name", MADE)
@quick
@given(seed=st.integers(0, 99), horizon=st.integers(1, 5), data=st.data())
def test_soon_and_later_make_up_the_whole(example, name, seed, horizon, data):
    plain = example(seed, chunk_size=2 if "chunk" in name else 1, chunk_k=4, top_k=4, vocab=6, length=8)
    num_rows = len(plain.targets.true_id_N)
    case = with_steps(plain, data.draw(st.lists(st.integers(1, 6), min_size=num_rows, max_size=num_rows)))
    even, soon, later = (MADE[name](row_weight=which, horizon=horizon) for which in ("even", "soon", "later"))
    assert soon.count(case.targets) + later.count(case.targets) == even.count(case.targets)
    sums = [case.loss(one).item() for one in (even, soon, later)]
    assert sums[1] + sums[2] == pytest.approx(sums[0], rel=1e-5, abs=1e-5)
    is_soon_N = case.targets.steps_to_reveal_N <= horizon
    gradient_NV = case.gradient(soon)
    assert (gradient_NV[~is_soon_N] == 0).all(), "rows that are revealed later are not taught"
    torch.testing.assert_close(gradient_NV + case.gradient(later), case.gradient(even), rtol=1e-4, atol=1e-5)


def test_steps_are_needed_only_where_they_are_read():
    for make in MADE.values():
        assert "steps" not in make().needs.signals
        assert make(row_weight="later").needs.signals == make().needs.signals | {"steps"}
