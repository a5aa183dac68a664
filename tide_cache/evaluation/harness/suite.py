"""The tasks by which the paper compares students, with their settings.

Names, budgets and shots are those of the paper's evaluation script (arXiv:2604.26951, Table 6 for the batches). If
lm-eval gives several figures for a task, `metric` names the one to show; all are kept in the results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tide_cache.errors import RunFileError

INSTALL = "Evaluation on tasks needs lm-eval with its mathematics: pip install 'tide-cache[eval]'"
DEFINITIONS = Path(__file__).with_name("definitions")


@dataclass(frozen=True)
class TaskSettings:
    """One task and how it is run.

    Attributes:
        name: As given on the command line and in the results.
        new_tokens: Most tokens of an answer; None for the task's number.
        steps: Denoising steps for these tokens; None for one per token.
        shots: Examples in the prompt; None for the task's number.
        batch_size: Sequences per forward.
        metric: `metric,filter` of the figure to show; None for the task's first.
        folders: Folders of lm-eval's tasks to search; empty for all.
        source: The task's name in lm-eval; None for one of our tasks.
        overlay: One of our files, whose entries replace those of the source.
    """

    name: str
    new_tokens: int | None = None
    steps: int | None = None
    shots: int | None = None
    batch_size: int = 32
    metric: str | None = None
    folders: tuple[str, ...] = ()
    source: str | None = None
    overlay: Path | None = None

    def steps_per_block(self, block_size: int, new_tokens: int) -> int:
        """Return the forwards per block that keep the ratio of steps to tokens.

        Args:
            block_size: Blocks are always sampled whole.
            new_tokens: Tokens of an answer.
        """
        steps = new_tokens if self.steps is None else self.steps
        return min(block_size, max(1, -(-block_size * steps // new_tokens)))


_MMLU = (("mmlu/generative",), "mmlu_generative", DEFINITIONS / "mmlu_generative_dream.yaml")
TIDE = (
    TaskSettings("mmlu_generative_dream", 3, 3, 0, 128, "exact_match,get_response", *_MMLU),
    TaskSettings("mmlu_pro", 256, 256, 0, 64, "exact_match,custom-extract", ("mmlu_pro",), "mmlu_pro"),
    TaskSettings("hellaswag_gen", 3, 3, 0, 128, "exact_match,get_response", overlay=DEFINITIONS / "hellaswag_gen.yaml"),
    TaskSettings("gsm8k_cot", 256, 256, 0, 128, "exact_match,flexible-extract", ("gsm8k",), "gsm8k_cot"),
    TaskSettings("bbh", 256, 256, 3, 32, "exact_match,get-answer", ("bbh/cot_fewshot",), "bbh"),
    TaskSettings("minerva_math", 256, 256, 0, 32, "math_verify,none", ("minerva_math", "benchmarks"), "minerva_math"),
    TaskSettings("humaneval_instruct", 256, 256, 0, 128, "pass_at_1,program", ("humaneval",), "humaneval_instruct"),
    TaskSettings("mbpp_instruct", 256, 256, 0, 32, "pass_at_1,program", ("mbpp",), "mbpp_instruct"),
)
"""The paper's eight tasks."""

SUITES = {"tide": TIDE}


def choose_tasks(suite: str | None, names: Sequence[str]) -> tuple[TaskSettings, ...]:
    """Return the tasks of a suite, or those named; the name of a suite's task has the suite's budget.

    Args:
        suite: Name of a suite; None for none.
        names: Names of tasks; with a suite, only these of its tasks are returned.

    Raises:
        RunFileError: There is no such suite, a name is not in it, there is no name, or a name occurs twice.
    """
    if suite is not None and suite not in SUITES:
        raise RunFileError(f"--suite {suite!r}: no such suite; expected {', '.join(SUITES)}")
    known = {task.name: task for tasks in SUITES.values() for task in tasks}
    if suite is None:
        return _any_tasks(names, known)
    chosen = SUITES[suite]
    if strange := [name for name in names if name not in {task.name for task in chosen}]:
        raise RunFileError(
            f"--tasks {','.join(strange)}: not in the suite {suite}; expected some of "
            f"{', '.join(task.name for task in chosen)}, or leave --suite out to run any task of lm-eval"
        )
    return tuple(task for task in chosen if not names or task.name in names)


def _any_tasks(names: Sequence[str], known: Mapping[str, TaskSettings]) -> tuple[TaskSettings, ...]:
    """Return the named tasks; a task from a file has the file's name, since results are kept by name."""
    if not names:
        raise RunFileError("--tasks names no task; expected names joined by commas")
    chosen = []
    for name in names:
        short = Path(name).stem if name.endswith(".yaml") else name
        chosen.append(known.get(name) or TaskSettings(short, source=name))
    if twice := sorted({task.name for task in chosen if sum(other.name == task.name for other in chosen) > 1}):
        raise RunFileError(f"--tasks: found {', '.join(twice)} more than once; results are kept by name")
    return tuple(chosen)
