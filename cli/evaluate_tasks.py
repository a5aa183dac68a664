"""`tide-cache eval-tasks`: score a model and its baseline on benchmarks, with lm-evaluation-harness."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from json import loads as json_loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.config.settings import Isolation, Precision, ThinkPrefix
from tide_cache.errors import RunFileError, fault_list
from tide_cache.unreadable import names_in, told_apart

from .checkpoints import BlockSize, Checkpoint, open_model
from .console import chatter_to_stderr, print_json, say
from .launch import one_voice
from .options import THRESHOLD, Json, TopK, TopP
from .progress import ProgressReports
from .task_tables import print_results

if TYPE_CHECKING:
    from tide_cache.evaluation.harness.model import ModelOptions
    from tide_cache.evaluation.harness.scoring import Contestant
    from tide_cache.evaluation.harness.tasks import DefinedTask
    from tide_cache.evaluation.trained import TrainedModel
    from tide_cache.training.distributed import World

DEFAULT_OUT = Path("eval-output")


def evaluate_tasks(
    checkpoint: Checkpoint,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="Suite of tasks to score on: tide.", show_default=False)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated tasks: of the suite or, without --suite, any lm-eval task by name or YAML file.",
            show_default=False,
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Read task data from this folder, not from the hub.", show_default=False),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Model to compare with; by default the checkpoint that training started from.",
            show_default=False,
        ),
    ] = None,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Score the model alone, without a baseline.")
    ] = False,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution", help="Allow tasks that run programs written by the models; they run in a sandbox."
        ),
    ] = False,
    code_isolation: Annotated[
        Isolation,
        typer.Option(
            help="How programs are contained. namespaces: no network, files read-only. limits: only time "
            "and memory, for throw-away machines."
        ),
    ] = "namespaces",
    num_samples: Annotated[
        int, typer.Option(min=1, help="Sets of masked tokens per block when a likelihood is computed.")
    ] = 128,
    think_prefix: Annotated[
        ThinkPrefix,
        typer.Option(
            help="How an answer begins: as the template writes it with thinking off, with an empty think block, "
            "or with none."
        ),
    ] = "template",
    chat_template: Annotated[
        bool, typer.Option("--chat-template/--no-chat-template", help="Put questions through the chat template.")
    ] = True,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per forward; by default the suite's setting.", show_default=False),
    ] = None,
    block_size: BlockSize = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of questions per task; by default all.", show_default=False),
    ] = None,
    threshold: Annotated[float | None, THRESHOLD] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="P,P,...",
            help="Thresholds to answer at; reports accuracy against tokens per forward, and its area.",
            show_default=False,
        ),
    ] = None,
    steps_per_block: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum forwards per block of an answer; by default the task's.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Sampling temperature, 0 takes the likeliest token; by default the task's.",
            show_default=False,
        ),
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of masks and sampling; compare models with the same one.")] = 0,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "float32",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results.")] = DEFAULT_OUT,
    json: Json = False,
) -> None:
    """Score a model and its baseline on benchmark tasks. For held-out text, see `eval`.

    Under torchrun or `srun` the processes share the questions of each task, and only the first one prints.
    """
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):  # we show progress ourselves
        os.environ.setdefault(name, "1")
    if suite is None and tasks is None:
        raise RunFileError(
            "nothing to score on; give --suite tide or --tasks NAMES. Held-out text: tide-cache eval CHECKPOINT "
            "--dataset SPEC"
        )
    with chatter_to_stderr():
        from tide_cache.evaluation.harness.suite import choose_tasks
        from tide_cache.training.company import keep_company
        from tide_cache.training.distributed import find_world

        world = find_world()
        with one_voice(), keep_company(world) as company:
            if baseline is not None and no_baseline:
                raise RunFileError("--baseline and --no-baseline: found both; give one of them")
            curve = _numbers(thresholds, threshold)
            chosen = choose_tasks(suite, [name for name in (tasks or "").split(",") if name])
            if batch_size is not None:
                chosen = tuple(replace(task, batch_size=batch_size) for task in chosen)
            _require_harness(task_data)
            day = date.fromisoformat(company.from_first("day", _day_begun(out).isoformat()))
            models = _open_models(checkpoint, None if no_baseline else baseline, no_baseline, block_size, dtype, day)

            from tide_cache.evaluation.harness.model import ModelOptions

            decoding = (threshold, temperature, top_k, top_p, steps_per_block)
            asked = {
                role: ModelOptions(model.block_size, seed, num_samples, think_prefix, *decoding)
                for role, model in models.items()
            }
            _require_decoding(asked, curve)

            from tide_cache.evaluation.harness.sandbox import Sandbox
            from tide_cache.evaluation.harness.scoring import ScoringOptions, score_all
            from tide_cache.evaluation.harness.tasks import define_tasks
            from tide_cache.evaluation.parallelism import curves_of

            sandbox = Sandbox(code_isolation) if allow_code_execution else None
            defined = define_tasks(chosen, task_data, sandbox)
            _require_answers(defined, curve)
            if world.is_first:
                _say_what_has_no_effect(defined)
            contestants = [_contestant(role, model, asked[role], world) for role, model in models.items()]
            company.agree("")  # ranks exchange CPU tensors
            with ProgressReports("questions") as reports:
                report = reports.named if world.is_first else None
                options = ScoringOptions(limit, chat_template, dtype, curve)
                results = score_all(contestants, defined, out, options, world, report)
            document = {
                "checkpoint": checkpoint,
                "baseline": models["baseline"].info.location if "baseline" in models else None,
                "suite": suite,
                "limit": limit,
                "results": results,
                "curves": curves_of(results),
            }
            if world.is_first:
                from tide_cache.shards.publish import replace_json

                replace_json(out / "results.json", document)
                say(f"Results with all figures and answers: {out}")
    if not world.is_first:
        return
    if json:
        print_json(document)
    else:
        print_results(document)


def _numbers(thresholds: str | None, threshold: float | None) -> tuple[float, ...]:
    """Read `--thresholds`; nothing where it is not given."""
    if thresholds is None:
        return ()
    if threshold is not None:
        raise RunFileError("--threshold and --thresholds: found both; give one of them")
    try:
        numbers = tuple(float(text) for text in thresholds.split(","))
    except ValueError:
        raise RunFileError(
            f"--thresholds {thresholds}: expected numbers joined by commas, such as 0.5,0.7,0.9,1"
        ) from None
    if len(set(numbers)) < len(numbers):
        raise RunFileError(f"--thresholds {thresholds}: found a number more than once; results are kept by threshold")
    return numbers


def _require_decoding(asked: "dict[str, ModelOptions]", curve: tuple[float, ...]) -> None:
    faults = [
        fault
        for options in asked.values()
        for threshold in curve or (options.threshold,)
        for fault in replace(options, threshold=threshold).faults()
    ]
    if faults:
        raise RunFileError(fault_list("No answer can be written:", list(dict.fromkeys(faults)), "Nothing was loaded."))


def _require_answers(tasks: "Sequence[DefinedTask]", curve: tuple[float, ...]) -> None:
    if curve and (names := [task.settings.name for task in tasks if not task.writes]):
        raise RunFileError(
            f"--thresholds: {', '.join(names)} compares likelihoods, which no threshold changes; leave it to a run of "
            "its own"
        )


def _require_harness(task_data: Path | None) -> None:
    from tide_cache.evaluation.harness.suite import INSTALL

    if task_data is not None and not task_data.is_dir():
        raise RunFileError(f"--task-data {task_data}: found no such folder")
    if find_spec("lm_eval") is None:
        raise RunFileError(f"lm-eval is not installed. {INSTALL}")


def _open_models(
    checkpoint: str, baseline: str | None, no_baseline: bool, block_size: int | None, dtype: Precision, day: date
) -> "dict[str, TrainedModel]":
    """Open the student and its baseline, and check both."""
    from tide_cache.evaluation.harness.baseline import start_checkpoint

    models = {"student": open_model(checkpoint, block_size, dtype=dtype, day=day)}
    if not no_baseline:
        day = models["student"].tokenizer.today or day
        start = baseline or start_checkpoint(checkpoint)
        models["baseline"] = open_model(start, block_size, dtype=dtype, day=day)
    for model in models.values():
        model.require_fits(model.block_size)
    return models


def _day_begun(out: Path) -> date:
    """Return the day that templates wrote in existing results, or today; a rerun keeps the same day."""
    from tide_cache.pairing.dates import today

    for role in ("student", "baseline"):
        for name in names_in(out / role):
            if name.endswith(".json"):
                with suppress(ValueError, KeyError, TypeError), told_apart(out / role / name):
                    document = json_loads((out / role / name).read_text(encoding="utf-8"))
                    return date.fromisoformat(document["identity"]["template_date"])
    return today()


def _say_what_has_no_effect(tasks: "Sequence[DefinedTask]") -> None:
    for task in tasks:
        if names := task.without_effect():
            say(f"{task.settings.name}: generation_kwargs that the block sampler does not use: {', '.join(names)}")


def _contestant(role: str, model: "TrainedModel", options: "ModelOptions", world: "World") -> "Contestant":
    import torch

    from tide_cache.evaluation.harness.scoring import Contestant
    from tide_cache.modeling.backbone import DTYPES, fetch_weights, load_backbone
    from tide_cache.modeling.fingerprint import checkpoint_fingerprint
    from tide_cache.training.distributed import rank_device

    device = rank_device(world, "cuda" if torch.cuda.is_available() else "cpu")
    fetch_weights(model.info)
    return Contestant(
        role,
        model.info.location,
        model.tokenizer,
        checkpoint_fingerprint(model.info.folder),
        options,
        lambda: load_backbone(model.info, DTYPES[model.dtype], device),
    )
