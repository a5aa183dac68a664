"""AUP against values worked out by hand from its definition."""

from math import exp

import pytest

from tide_cache.evaluation.parallelism import CurvePoint, accuracy_under_parallelism, compared, frontier


def curve(*pairs):
    return [CurvePoint(1 - k / 10, rho, accuracy) for k, (rho, accuracy) in enumerate(pairs)]


def test_no_loss_of_accuracy_gives_the_whole_rectangle():
    assert accuracy_under_parallelism(curve((1.0, 0.6), (3.0, 0.6), (5.0, 0.6))) == pytest.approx(5 * 60)
    assert accuracy_under_parallelism(curve((1.0, 0.6))) == pytest.approx(60)


def test_a_loss_is_weighed_by_the_best_accuracy_of_all_models():
    points = curve((1.0, 0.80), (2.0, 0.78))
    own = 80 + (80 + 78 * exp(-3 * (1 - 78 / 80))) / 2
    assert accuracy_under_parallelism(points) == pytest.approx(own)
    expected = 80 + (80 * exp(-3 * (1 - 80 / 90)) + 78 * exp(-3 * (1 - 78 / 90))) / 2
    assert accuracy_under_parallelism(points, best=0.9) == pytest.approx(expected)


def test_points_more_than_five_per_cent_below_the_first_are_left_out():
    kept = curve((1.0, 0.50), (2.0, 0.45))
    assert accuracy_under_parallelism([*kept, CurvePoint(0.1, 9.0, 0.44)]) == accuracy_under_parallelism(kept)
    assert accuracy_under_parallelism(kept) > 50


def test_order_and_repeated_parallelism_do_not_matter():
    points = curve((1.0, 0.5), (2.0, 0.5), (2.0, 0.4))
    assert accuracy_under_parallelism(points[::-1]) == pytest.approx(100)
    assert [point.accuracy for point in frontier(points)] == [0.5, 0.5]


def test_nothing_to_draw_and_nothing_right():
    assert accuracy_under_parallelism([]) is None
    assert accuracy_under_parallelism([CurvePoint(0.9, float("nan"), 0.5)]) is None
    assert accuracy_under_parallelism(curve((1.0, 0.0), (2.0, 0.0))) == 0


def test_models_of_one_task_share_the_best_accuracy():
    strong, weak = curve((1.0, 0.9), (2.0, 0.9)), curve((1.0, 0.5), (2.0, 0.5))
    found = compared({"student": weak, "teacher": strong})
    assert found["best_accuracy"] == 0.9
    assert found["models"]["teacher"]["aup"] == pytest.approx(180)
    assert found["models"]["student"]["aup"] == pytest.approx(50 + 50 * exp(-3 * (1 - 5 / 9)))
    assert found["models"]["student"]["points"][0] == {"threshold": 1.0, "tokens_per_forward": 1.0, "accuracy": 0.5}
