"""Generation settings, against what lm-eval's own models make of them."""

import pytest
from lm_eval.models.utils import normalize_gen_kwargs

from tide_cache.errors import RunFileError
from tide_cache.evaluation.harness.generation import BUDGET, BUDGETS, normalised, temperature_of, without_effect
from tide_cache.evaluation.harness.suite import TaskSettings, choose_tasks
from tide_cache.evaluation.harness.tasks import define_tasks

BUDGETS_GIVEN = [
    {},
    *({name: 8} for name in BUDGETS),
    {"max_tokens": 9, "max_new_tokens": 8},
    {"max_gen_toks": None, "max_tokens": 7},
]
DRAWS = [
    {}, {"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 0.7, "do_sample": False}, {"do_sample": False},
    {"temperature": 0.7, "do_sample": True}, {"temperature": 1, "do_sample": None},
    {"temperature": 0, "do_sample": True},
]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS_GIVEN, ids=str)
@pytest.mark.parametrize("draws", DRAWS, ids=str)
def test_settings_mean_what_they_mean_to_lm_eval(budget, draws):
    found = normalised(budget | draws, BUDGET, "task")
    expected = normalize_gen_kwargs(budget | draws)
    assert found["max_gen_toks"] == expected["max_gen_toks"]
    assert not found.keys() & set(BUDGETS[1:])
    assert temperature_of(found) == (expected.get("temperature", 0) if expected["do_sample"] else 0)


def test_what_says_so_already_keeps_its_digest():
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0}
    assert normalised(settings, BUDGET, "task") == settings


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": "many"}, {"max_tokens": 0}, {"max_gen_toks": True}, {"temperature": -1}]
)
def test_numbers_that_cannot_be_used_are_refused_by_name(settings):
    with pytest.raises(RunFileError, match=rf"--tasks mine: generation_kwargs.{next(iter(settings))}: found"):
        normalised(settings, BUDGET, "mine")


def test_settings_without_effect_are_named():
    drawn = {"do_sample": True, "temperature": 1.0}
    assert without_effect(drawn | {"top_p": 0.9, "num_beams": 4, "max_new_token": 8}) == [
        "top_p = 0.9", "num_beams = 4", "max_new_token = 8",
    ]  # fmt: skip
    assert without_effect({"until": [], "max_gen_toks": 8, "steps": 8, "top_p": 0.9, "num_beams": 1}) == []


def test_the_budget_of_a_task_file_holds_under_any_name(shared):
    path = shared / "cases/lm-eval-yaml/max_new_tokens.yaml"
    (task,) = define_tasks(choose_tasks(None, [str(path)]), None, None)
    assert task.configs[0]["generation_kwargs"] == {"until": ["\n"], "max_gen_toks": 8, "steps": 8}
    (shorter,) = define_tasks([TaskSettings("t", 4, source=str(path))], None, None)
    assert shorter.configs[0]["generation_kwargs"]["max_gen_toks"] == 4
