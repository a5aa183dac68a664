"""A budget of seconds is divided, and says how much of a sample fits into it; the clock is one of numbers."""

from itertools import chain

import pytest

from tide_cache.building.budget import Budget, affordable_parts, spread_first


class _Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("budget_s", "parts"),
    [
        (1000, [1, 1, 2, 4, 2]),  # doubled until all are done
        (50, [1, 1, 2, 1]),  # the last part is what fits
        (30, [1, 1, 1]),
        (5, [1]),  # one, though it takes longer
        (0, [1]),
    ],
)
def test_parts_grow_while_they_fit_at_the_pace_so_far(budget_s, parts):
    clock = _Clock()
    found = []
    for part in affordable_parts(range(10), Budget(budget_s, clock)):
        clock.now_s += 10 * len(part)
        found.append(part)
    assert [len(part) for part in found] == parts
    assert list(chain(*found)) == list(range(sum(parts)))


def test_what_takes_no_time_is_done_whole():
    assert list(chain(*affordable_parts(range(7), Budget(1, _Clock())))) == list(range(7))


def test_a_share_is_of_the_seconds_left():
    clock = _Clock()
    budget = Budget(60, clock)
    clock.now_s += 20
    assert budget.share(0.25).left_s() == 10


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_the_first_members_are_spread_over_all(count):
    ordered = spread_first(list(range(count)))
    assert sorted(ordered) == list(range(count))
    if count >= 8:
        assert max(ordered[:2]) - min(ordered[:2]) >= count / 3
