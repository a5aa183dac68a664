"""Code tasks: from an answer to a program and its score; lm-eval's own metric is from the hub and has no sandbox."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from tide_cache.evaluation.harness.sandbox import Sandbox

FILTER = "program"
_OPENING_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*\n")


def code_of(answer: str) -> str:
    """Return the code of an answer whose prompt ended in an opening fence: up to the closing one, or all of it.

    Args:
        answer: May start with its own fence.
    """
    return _OPENING_FENCE.sub("", answer).partition("```")[0]


def _completions(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[doc["prompt"] + code_of(answer) for answer in row] for row, doc in zip(answers, docs, strict=True)]


def _solutions(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[code_of(answer) for answer in row] for row in answers]


PROGRAMS: dict[str, Callable[[list[list[str]], list[dict[str, Any]]], list[list[str]]]] = {
    "humaneval_instruct": _completions,
    "mbpp_instruct": _solutions,
}
"""How answers become programs, by task; other tasks that run code are refused."""


def scored_by(sandbox: Sandbox, task: str) -> dict[str, Any]:
    """Return the entries of a task's configuration that replace lm-eval's filter and metric by ours.

    Args:
        sandbox: Where programs run.
        task: One of `PROGRAMS`.
    """

    def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> float:
        """Return the share of programs that pass the tests."""
        programs = [f"{p}\n\n{test}" for test, row in zip(references, predictions, strict=True) for p in row]
        return sum(sandbox.run(program).is_passed for program in programs) / len(programs)

    return {
        "filter_list": [{"name": FILTER, "filter": [{"function": "custom", "filter_fn": PROGRAMS[task]}]}],
        "metric_list": [{"metric": pass_at_1, "aggregation": "mean", "higher_is_better": True}],
    }
