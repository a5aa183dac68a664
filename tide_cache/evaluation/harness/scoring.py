"""Scores models on tasks, one after the other; each result is kept in a file, so that a rerun continues.

A result file states what it is a result of: the weights, the tokenizer, the questions and everything that affects an
answer. A rerun reuses it if all of that is the same, and refuses the folder otherwise.
"""

import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval
from lm_eval.evaluator import evaluate

from tide_cache.decoding.step import total_counts
from tide_cache.disk import new_folder
from tide_cache.errors import EvaluationError, Interrupted, RunFileError, differing, fault_list
from tide_cache.evaluation.harness.model import BlockDiffusionLM, ModelOptions, Progress
from tide_cache.evaluation.harness.tasks import DefinedTask
from tide_cache.modeling.backbone import Backbone
from tide_cache.pairing import TextTokenizer
from tide_cache.shards.publish import replace_json
from tide_cache.training.distributed import World
from tide_cache.training.meeting import join, wait_for_all
from tide_cache.unreadable import is_there, told_apart
from tide_cache.version import __version__

FORMAT_VERSION = 1
FEWSHOT_SEED = 1234
"""lm-eval's own default."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A model to score.

    Attributes:
        role: `student` or `baseline`; names its folder.
        location: Folder or hub name, as given.
        tokenizer: The model's tokenizer.
        fingerprint: Fingerprint of its weights.
        options: How to ask it.
        load: Loads the weights.
    """

    role: str
    location: str
    tokenizer: TextTokenizer
    fingerprint: Mapping[str, str]
    options: ModelOptions
    load: Callable[[], Backbone]


class Entry(NamedTuple):
    """One result: a model on a task, decoded at a threshold; `name` is that of its file."""

    contestant: Contestant
    task: DefinedTask
    name: str

    @property
    def key(self) -> tuple[str, str]:
        """Role and name."""
        return self.contestant.role, self.name


@dataclass(frozen=True)
class ScoringOptions:
    """Options for all models and tasks.

    Attributes:
        limit: Most questions of each of lm-eval's tasks; None for all.
        chat_template: Whether prompts are rendered as conversations.
        dtype: Type of the weights.
        thresholds: Thresholds at which every task is decoded, one result each; none for the one in the model's options.
    """

    limit: int | None
    chat_template: bool
    dtype: str
    thresholds: tuple[float, ...] = ()

    def identity(self) -> Document:
        """Return the values in which results must agree; each has its own threshold."""
        return {name: value for name, value in asdict(self).items() if name != "thresholds"}


def score_all(
    contestants: Sequence[Contestant],
    tasks: Sequence[DefinedTask],
    out: Path,
    options: ScoringOptions,
    world: World,
    report: Callable[[str], Progress] | None = None,
) -> dict[str, dict[str, Document]]:
    """Score each model on each task, except for results that `out` already holds.

    Args:
        contestants: The student, and the models to compare it with.
        tasks: From `define_tasks`.
        out: Folder of results, the same for all ranks; created if missing.
        options: Options for all models and tasks.
        world: This process; every rank makes the same call.
        report: Returns the listener for the progress of a name.

    Returns:
        Results by role and name: the task's, or `TASK@THRESHOLD`.

    Raises:
        EvaluationError: The folder holds results of something else, or a task's data is not available.
        RunFileError: There are more ranks than questions.
        Interrupted: Ctrl-C was pressed; finished tasks are kept.
    """
    entries = [entry for contestant in contestants for entry in _entries(contestant, tasks, options.thresholds)]
    identities = {entry.key: _identity(entry.contestant, entry.task, options) for entry in entries}
    done = _done(out, identities)
    missing = {e.task.settings.name: e.task for e in entries if e.key not in done}
    opened = {name: task.open() for name, task in missing.items()}
    _require_enough(opened, options.limit, world)
    if world.size > 1:
        join(world, "cpu")  # ranks exchange little, and nothing on the GPU
        wait_for_all(world)  # no rank writes before all have read the finished results
    try:
        for contestant in contestants:
            left = [e for e in entries if e.contestant.role == contestant.role and e.key not in done]
            backbone = contestant.load() if left else None
            for model, task, name in left:
                assert backbone is not None
                progress = report(f"{model.role}, {name}") if report else None
                lm = BlockDiffusionLM(backbone, model.tokenizer, model.options, task.settings, world, progress)
                result = score_task(lm, task, opened[task.settings.name], options)
                if world.is_first:
                    samples = result.pop("samples")
                    done[model.role, name] = {"identity": identities[model.role, name], **result}
                    _keep(out / model.role, name, done[model.role, name], samples)
            del backbone
            gc.collect()
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped; {out} keeps {len(done)} of {len(identities)} results. Run the same command again to go on."
        ) from None
    if not world.is_first:
        return {}
    return {c.role: {e.name: done[e.key] for e in entries if e.contestant.role == c.role} for c in contestants}


def _entries(contestant: Contestant, tasks: Sequence[DefinedTask], thresholds: Sequence[float]) -> list[Entry]:
    if not thresholds:
        return [Entry(contestant, task, task.settings.name) for task in tasks]
    at = [replace(contestant, options=replace(contestant.options, threshold=threshold)) for threshold in thresholds]
    return [Entry(one, task, f"{task.settings.name}@{one.options.threshold:g}") for task in tasks for one in at]


def _identity(contestant: Contestant, task: DefinedTask, options: ScoringOptions) -> Document:
    settings, day = task.settings, contestant.tokenizer.today
    return {
        "format_version": FORMAT_VERSION,
        "weights": dict(contestant.fingerprint),
        "tokenizer": contestant.tokenizer.fingerprint(),
        **({} if day is None else {"template_date": day.isoformat()}),
        "task": settings.name,
        "questions": task.identity(),
        "new_tokens": settings.new_tokens,
        "steps": settings.steps,
        "shots": settings.shots,
        **asdict(contestant.options),
        **options.identity(),
        "lm_eval": lm_eval.__version__,
    }


def _done(out: Path, identities: Mapping[tuple[str, str], Document]) -> dict[tuple[str, str], Document]:
    """Return the existing results.

    Raises:
        EvaluationError: Some are from another evaluation; lists every difference.
    """
    done, faults = {}, []
    for (role, name), identity in identities.items():
        path = out / role / f"{name}.json"
        if not is_there(path):
            continue
        try:
            with told_apart(path):
                document = json.loads(path.read_text(encoding="utf-8"))
            found = document["identity"]
        except (ValueError, KeyError, TypeError):
            faults.append(f"{path}: found no result of an evaluation; remove it")
            continue
        faults += [
            f"{path}, {key}: found {one!r}, expected {other!r}" for key, one, other in differing(found, identity)
        ]
        done[role, name] = document
    if faults:
        raise EvaluationError(
            fault_list(
                "The folder holds results of another evaluation:", faults, "Give another --out, or remove these files."
            )
        )
    return done


def _require_enough(opened: Mapping[str, Mapping[str, Any]], limit: int | None, world: World) -> None:
    """Raise an error if there are more ranks than questions: lm-eval fails on a rank without any."""
    for tasks in opened.values():
        for name, task in tasks.items():
            num_questions = min(len(task.eval_docs), limit or len(task.eval_docs))
            if num_questions < world.size:
                raise RunFileError(
                    f"{name} has {num_questions} questions for {world.size} processes; start fewer, or raise --limit"
                )


def score_task(lm: BlockDiffusionLM, task: DefinedTask, opened: Mapping[str, Any], options: ScoringOptions) -> Document:
    """Return a model's figures on all questions of a task; None except on the first rank."""
    begin_s = time.monotonic()
    for single in opened.values():
        single.set_fewshot_seed(FEWSHOT_SEED)
    found = evaluate(
        lm,
        {"tasks": dict(opened)},
        limit=options.limit,
        bootstrap_iters=1000,
        apply_chat_template=options.chat_template,
        confirm_run_unsafe_code=True,  # consent was asked for when the task was defined
    )
    num_cut, counts = lm.num_cut, lm.counts
    if lm.world_size > 1:
        gathered = lm.gather_object((lm.num_cut, lm.counts)) or []
        num_cut, counts = sum(cut for cut, _ in gathered), total_counts(part for _, part in gathered)
    if found is None:
        return {}
    sizes = {name: int(found["n-samples"][name]["effective"]) for name in opened}
    figures = {name: _figures(found["results"][name]) for name in opened}
    metric = task.settings.metric or next(iter(next(iter(figures.values()))))
    score, stderr = _pooled(figures, sizes, metric)
    return {
        "task": task.settings.name,
        "metric": metric,
        "score": score,
        "stderr": stderr,
        "num_questions": sum(sizes.values()),
        "num_cut_prompts": num_cut,
        "decoding": counts.figures() if counts.sequences else None,
        "settings_without_effect": task.without_effect(),
        "seconds": round(time.monotonic() - begin_s, 1),
        "tide_cache_version": __version__,
        "figures": figures,
        "samples": found["samples"],
    }


def _figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return lm-eval's numbers by `metric,filter`; what is not a number, such as `N/A`, becomes None."""
    numbers = {}
    for key, value in result.items():
        if "," in key:
            is_number = isinstance(value, int | float) and math.isfinite(value)
            numbers[key] = float(value) if is_number else None
    return numbers


def _pooled(
    figures: Mapping[str, Mapping[str, float | None]], sizes: Mapping[str, int], metric: str
) -> tuple[float | None, float | None]:
    """Return the mean of a metric over all questions, with its standard error; None if a part has none."""
    name, _, filter_name = metric.partition(",")
    total = sum(sizes.values())
    scores = [(size, figures[task].get(metric)) for task, size in sizes.items()]
    errors = [(size, figures[task].get(f"{name}_stderr,{filter_name}")) for task, size in sizes.items()]
    score = None if any(v is None for _, v in scores) else sum(n * v for n, v in scores if v is not None) / total
    is_known = all(v is not None for _, v in errors)
    stderr = math.sqrt(sum((n * v) ** 2 for n, v in errors if v is not None)) / total if is_known else None
    return score, stderr


def _keep(folder: Path, name: str, document: Document, samples: Mapping[str, Sequence[Document]]) -> None:
    """Write questions and answers, and then the result, which marks the task as done."""
    with new_folder(folder), (folder / f"{name}.samples.jsonl").open("w", encoding="utf-8") as stream:
        for task, entries in samples.items():
            for entry in sorted(entries, key=lambda entry: (entry["doc_id"], entry["filter"])):
                stream.write(json.dumps({"task": task, **entry}, ensure_ascii=False, default=str) + "\n")
    replace_json(folder / f"{name}.json", document)
