"""`tide-cache import-topk`: a cache from what an engine wrote."""

from pathlib import Path
from typing import Annotated

import typer

from tide_cache.errors import RunFileError

from .build_teacher_shards import build_and_tell, tell_dry_run
from .console import chatter_to_stderr, number, print_json, say
from .options import BadRow, Dataset, DryRun, Json, Out, Set, StudentTokenizer, read_build_run


def import_topk(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="What the engine wrote, or a folder of such files: vLLM's prompt_logprobs as JSON lines or Parquet, "
            "or DistillKit's Parquet.",
            show_default=False,
        ),
    ] = None,
    run_file: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN.toml", help="Run file of a build; optional if the options say enough."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The model that the engine served: a folder or a hub name. Its weights are not read.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Its commit, 40 hex digits; part of the cache's identity.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in the cache's identity.", show_default="that of --teacher"),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engine and release, for the cache's identity: 'vllm 0.11.0'.", show_default=False),
    ] = None,
    student: StudentTokenizer = None,
    dataset: Dataset = None,
    on_bad_row: BadRow = None,
    out: Out = None,
    write_prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what to ask the engine, one request for each sample in JSON lines, and stop.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0, help="With --write-prompts: ids to ask for at each position.", show_default="signals.top_k"
        ),
    ] = None,
    assignments: Set = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a cache from the top-k that an engine wrote for the rendered samples of a corpus.

    Tokens and texts of the file are compared with the samples, position by position. The cache is that of a causal
    teacher.
    """
    if (file is None) == (write_prompts is None):
        found = "neither" if file is None else "both"
        raise RunFileError(
            f"FILE and --write-prompts: found {found}; give the file that the engine wrote, or first "
            "--write-prompts FILE for what to ask it"
        )
    if top_k is not None and write_prompts is None:
        raise RunFileError("--top-k: only --write-prompts asks for ids; --set signals.top_k=N keeps fewer of a file's")
    run = read_build_run(
        run_file,
        assignments,
        teacher,
        student,
        dataset,
        on_bad_row,
        out if out is not None or write_prompts is None else "cache",
        None,
        False,
        teacher__revision=revision,
        teacher__topk__path=(file or write_prompts),
        teacher__topk__engine=engine,
        teacher__topk__name=name,
    )
    if write_prompts is not None:
        with chatter_to_stderr():
            from tide_cache.building.prompts import write_prompts as write

            count = write(run, write_prompts, run.signals.top_k if top_k is None else top_k)
        if json:
            print_json({"prompts": str(write_prompts), "num_prompts": count})
        say(f"{number(count)} requests in {write_prompts}; give the answers to tide-cache import-topk.")
        return
    if dry_run:
        tell_dry_run(run, json)
        return
    with chatter_to_stderr():
        from tide_cache.building.executors import InProcess
    build_and_tell(run, InProcess(), range, True, json)
