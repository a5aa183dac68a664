"""`tide-cache answers`: have a teacher write the answers to a corpus's prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.config.answers import AnswersRun, OnUnfinished
from tide_cache.config.base import load_run_file, parse_assignments
from tide_cache.config.settings import Precision, Remasking, TeacherContext
from tide_cache.places import require_checkpoint

from .checkpoints import BlockSize
from .console import chatter_to_stderr, number, print_fields, print_json, print_text, say
from .options import (
    BATCH_SIZE,
    CFG_SCALE,
    MAX_NEW_TOKENS,
    REMASKING,
    SEED,
    STEPS_PER_BLOCK,
    STOP,
    TEMPERATURE,
    THRESHOLD,
    AllowUntrained,
    BadRow,
    Dataset,
    DryRun,
    Json,
    RunFile,
    Set,
    Teacher,
    TopK,
    TopP,
    Workers,
    corpus_flags,
    given,
)
from .progress import ProgressReport
from .run_toml import run_toml

if TYPE_CHECKING:
    from tide_cache.answering.prepare import PreparedAnswers
    from tide_cache.answering.run import AnswersSummary

SHOWN_ROWS = 5


def answers(
    run_file: RunFile = None,
    teacher: Teacher = None,
    dataset: Dataset = None,
    on_bad_row: BadRow = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="File of answered rows to write.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Commit of a hub checkpoint.", show_default=False)
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Jinja file in place of the tokenizer's chat template.", show_default=False),
    ] = None,
    context: Annotated[
        TeacherContext | None,
        typer.Option(
            help="What the teacher is shown while it writes; by default what it was trained with.", show_default=False
        ),
    ] = None,
    dtype: Annotated[Precision | None, typer.Option(help="Precision of the weights.", show_default="bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")] = None,
    block_size: BlockSize = None,
    max_new_tokens: Annotated[int | None, MAX_NEW_TOKENS] = None,
    steps_per_block: Annotated[int | None, STEPS_PER_BLOCK] = None,
    threshold: Annotated[float | None, THRESHOLD] = None,
    remasking: Annotated[Remasking | None, REMASKING] = None,
    temperature: Annotated[float | None, TEMPERATURE] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    cfg_scale: Annotated[float | None, CFG_SCALE] = None,
    stop: Annotated[list[str] | None, STOP] = None,
    seed: Annotated[int | None, SEED] = None,
    unfinished: Annotated[
        OnUnfinished | None,
        typer.Option(
            help="Keep answers that do not end within --max-new-tokens, or leave them out.", show_default="keep"
        ),
    ] = None,
    trajectory: Annotated[
        bool,
        typer.Option(
            "--trajectory", help="Also write in which order the tokens were revealed, for views on given masks."
        ),
    ] = False,
    batch_size: Annotated[int | None, BATCH_SIZE] = None,
    workers: Workers = None,
    allow_untrained: AllowUntrained = False,
    assignments: Set = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let a teacher, diffusion or causal, write the answers to a corpus's prompts, as a new corpus.

    Run the same command again to continue an interrupted run.
    """
    flags = given(
        {
            "teacher.model": teacher,
            "teacher.revision": revision,
            "teacher.context": context,
            "teacher.block_size": block_size,
            "teacher.dtype": dtype,
            "teacher.device": device,
            "teacher.allow_untrained": allow_untrained or None,
            **corpus_flags("corpus", dataset, on_bad_row),
            "decoding.max_new_tokens": max_new_tokens,
            "decoding.steps_per_block": steps_per_block,
            "decoding.threshold": threshold,
            "decoding.remasking": remasking,
            "decoding.temperature": temperature,
            "decoding.top_k": top_k,
            "decoding.top_p": top_p,
            "decoding.cfg_scale": cfg_scale,
            "decoding.stop": stop or None,
            "decoding.seed": seed,
            "answers.out": out,
            "answers.unfinished": unfinished,
            "answers.trajectory": trajectory or None,
            "answers.batch_size": batch_size,
        }
    )
    if chat_template is not None:
        flags |= given({"teacher.tokenizer.chat_template": chat_template, "teacher.tokenizer.path": teacher})
    run = load_run_file(AnswersRun, run_file, {**flags, **parse_assignments(assignments or ())})
    require_checkpoint(run.teacher.model)
    with chatter_to_stderr():
        from tide_cache.answering.prepare import prepare_answers
        from tide_cache.answering.record import day_begun, require_fits
        from tide_cache.answering.run import require_devices, write_answers

        require_devices(run, workers or 1)
        prepared = prepare_answers(run, day_begun(run.answers.out))
        require_fits(run.answers.out, prepared.identity)
        for remark in prepared.notes:
            say(remark)
        if not dry_run:
            prepared = prepared.with_weights()
            with ProgressReport("answers", "answers") as report:
                summary = write_answers(prepared, workers or 1, report.update)
    if dry_run:
        _print_dry_run(prepared, json)
    elif json:
        print_json(_document(summary))
    else:
        _print_summary(summary)


def _print_dry_run(prepared: "PreparedAnswers", json: bool) -> None:
    num_prompts, num_skipped = len(prepared.corpus), len(prepared.skipped)
    if json:
        document = {"run": prepared.run.model_dump(mode="json"), "prompts": num_prompts, "parts": prepared.num_shards}
        print_json({**document, "skipped_rows": prepared.skipped})
        return
    print_text(
        f"# {number(num_prompts)} prompts in {number(prepared.num_shards)} parts, {number(num_skipped)} rows left "
        f"out\n{run_toml(prepared.run)}"
    )
    say("Checked; no model was loaded and nothing was written.")


def _document(summary: "AnswersSummary") -> dict[str, Any]:
    result = summary.result.model_dump(mode="json")
    counts = {"prompts": summary.num_prompts, "parts": summary.num_shards, "parts_reused": summary.shards_reused}
    return {"out": str(summary.out), **result, **counts, "skipped_rows": summary.skipped_rows,
            "elapsed_s": summary.elapsed_s}  # fmt: skip


def _print_summary(summary: "AnswersSummary") -> None:
    result = summary.result
    parallel = result.tokens / result.forwards if result.forwards else 0.0
    fields = [
        ("file", str(summary.out)),
        ("answers", f"{number(result.answers)} to {number(summary.num_prompts)} prompts"),
        ("parts", f"{number(summary.num_shards)} ({number(summary.shards_reused)} already existed)"),
        ("tokens", f"{number(result.tokens)}, {parallel:.2f} per forward"),
        ("unfinished", f"{number(result.unfinished)}, of which {number(result.dropped)} left out"),
        ("empty, left out", number(result.empty)),
        ("time", f"{summary.elapsed_s:.1f} s"),
    ]
    if summary.skipped_rows:
        fields.append(("bad rows left out", number(len(summary.skipped_rows))))
    print_fields("Answered", fields)
    for row in summary.skipped_rows[:SHOWN_ROWS]:
        say(f"left out: {row}")
    if result.unfinished > result.dropped:
        say(
            f"warning: {result.unfinished - result.dropped} answers were cut at --max-new-tokens; raise it, or leave "
            "them out with --unfinished drop"
        )
    say(f"Next: take it as a corpus, corpus.spec = {str(summary.out)!r} of a build or data.corpus.spec of a training.")
