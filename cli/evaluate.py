"""`tide-cache eval`: held-out NLL over diffusion time, agreement with the teacher, and scores on tasks."""

import json as json_format
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tide_cache.disk import write_whole
from tide_cache.errors import CacheMismatchError, RunFileError, fault_list
from tide_cache.locations import CachePath, cache_path
from tide_cache.places import require_cache, require_checkpoint

from .checkpoints import BlockSize, Checkpoint, OpenModel, open_model
from .console import chatter_to_stderr, number, percent, print_fields, print_json, print_table, say
from .harness import (
    DEFAULT_OUT,
    AllowCode,
    Baseline,
    BatchSize,
    CodeIsolation,
    Dtype,
    DtypeOption,
    HarnessFlags,
    Isolation,
    NoBaseline,
    NumSamples,
    Suite,
    TaskData,
    Tasks,
    Think,
    ThinkPrefix,
    UseTemplate,
    score_on_tasks,
)
from .options import BadRow, Json, OnBadRow
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.evaluation import AgreementReport, NllReport
    from tide_cache.manifest import Manifest
    from tide_cache.modeling.backbone import Backbone
    from tide_cache.pairing import PairedRows
    from tide_cache.records import SamplePair

CACHE_SAMPLES = 1000
"""Samples of a cache that agreement looks at unless told otherwise; their views are held in memory."""


class Context(StrEnum):
    """What the model is shown."""

    block = "block"
    full = "full"


def evaluate(
    checkpoint: Checkpoint,
    dataset: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Held-out corpus; as for `train`.", show_default=False)
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Also compare with the teacher, on this cache's views.", show_default=False
        ),
    ] = None,
    block_size: BlockSize = None,
    max_length: Annotated[int, typer.Option(min=1, help="Longest sequence, in tokens.")] = 512,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Samples at most; by default all of the corpus and of each task, {CACHE_SAMPLES} of the cache.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Mask seed; models are compared at the same one.")] = 0,
    context: Annotated[
        Context, typer.Option(help="block: [x_t, x_0] under the block mask. full: x_t alone, bidirectional.")
    ] = Context.block,
    on_bad_row: BadRow = None,
    json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help=f"Also write the JSON document to this file. With tasks: folder of results; default {DEFAULT_OUT}.",
            show_default=False,
        ),
    ] = None,
    suite: Suite = None,
    tasks: Tasks = None,
    task_data: TaskData = None,
    baseline: Baseline = None,
    no_baseline: NoBaseline = False,
    allow_code_execution: AllowCode = False,
    code_isolation: Isolation = CodeIsolation.namespaces,
    num_samples: NumSamples = 128,
    think_prefix: Think = ThinkPrefix.template,
    chat_template: UseTemplate = True,
    batch_size: BatchSize = None,
    dtype: DtypeOption = Dtype.float32,
) -> None:
    """Measure a model on held-out text, over diffusion time; or, with `--suite` or `--tasks`, on benchmark tasks.

    Under torchrun or `srun` the processes share the questions of each task; only the first one prints.
    """
    if suite is not None or tasks is not None:
        if dataset is not None or cache is not None:
            raise RunFileError(
                "--dataset and --cache measure on text, --suite and --tasks on tasks; run eval once for each"
            )
        flags = HarnessFlags(
            checkpoint=checkpoint,
            suite=suite,
            tasks=tasks,
            task_data=task_data,
            baseline=baseline,
            no_baseline=no_baseline,
            allow_code_execution=allow_code_execution,
            code_isolation=code_isolation,
            num_samples=num_samples,
            think_prefix=think_prefix,
            chat_template=chat_template,
            batch_size=batch_size,
            dtype=dtype.value,
            block_size=block_size,
            limit=limit,
            seed=seed,
            out=out or DEFAULT_OUT,
            json=json,
        )
        score_on_tasks(flags)
    elif dataset is not None:
        _measure_on_text(
            checkpoint, dataset, cache, block_size, max_length, limit, seed, context, on_bad_row, json, out, dtype.value
        )
    else:
        raise RunFileError("nothing to measure on; give --dataset SPEC, --suite tide or --tasks NAMES")


def _measure_on_text(
    checkpoint: str,
    dataset: str,
    cache: str | None,
    block_size: int | None,
    max_length: int,
    limit: int | None,
    seed: int,
    context: Context,
    on_bad_row: OnBadRow | None,
    json: bool,
    out: Path | None,
    dtype: str,
) -> None:
    if out is not None and not out.parent.is_dir():
        raise RunFileError(f"--out {out}: found no folder {out.parent}; make it first")
    require_checkpoint(checkpoint)
    if cache is not None:
        require_cache(cache_path(cache))
    with chatter_to_stderr():
        from tide_cache.corpus import open_corpus
        from tide_cache.pairing.checking import LengthLimit, remarks_of, require_samples, require_usable

        model = open_model(checkpoint, block_size, as_trained=True)
        model.require_fits(max_length)
        root = cache_path(cache) if cache is not None else None
        manifest = _fitting_manifest(root, model) if root is not None else None
        handling: Literal["error", "skip"] = "error" if on_bad_row is None else on_bad_row.value
        corpus = open_corpus(dataset, folder=Path.cwd(), on_bad_row=handling, section="--dataset")
        paired = _paired(list(corpus.rows(0, limit or len(corpus))), model, max_length)
        require_usable(dataset, paired.faults, handling, "")
        require_samples(f"{dataset}: no row of the corpus became a sample:", paired.report, "Raise --max-length.")
        limits = (LengthLimit("--max-length", max_length),)
        pairs, remarks = paired.pairs, remarks_of(paired, limits, corpus.notes, corpus.skipped)
        for remark in remarks:
            say(remark)
        backbone = model.load(dtype)
        nll = _held_out_nll(backbone, model, pairs, seed, context)
        agreement = _agreement(backbone, model, root, manifest, limit) if root and manifest else None
    document = {
        "checkpoint": checkpoint,
        "dataset": dataset,
        "block_size": model.block_size,
        "max_length": max_length,
        "dtype": dtype,
        "remarks": remarks,
        "nll": asdict(nll),
        "agreement": asdict(agreement) if agreement else None,
    }
    if (day := model.tokenizer.today) is not None:
        document["template_date"] = day.isoformat()
    if json:
        print_json(document)
    else:
        _print_nll(nll, model)
        if agreement is not None:
            _print_agreement(agreement)
    if out is not None:
        write_whole(out, json_format.dumps(document, indent=2) + "\n")


def _paired(rows: list[Any], model: OpenModel, max_length: int) -> "PairedRows":
    from tide_cache.pairing import encode_student

    return encode_student(
        rows, model.tokenizer, max_length=max_length, block_size=model.block_size, fill_last_block=True
    )


def _held_out_nll(
    backbone: "Backbone", model: OpenModel, pairs: "list[SamplePair]", seed: int, context: Context
) -> "NllReport":
    from tide_cache.evaluation import held_out_nll
    from tide_cache.evaluation.held_out import text_bytes

    with ProgressReport("held-out NLL", "views") as report:
        return held_out_nll(
            backbone,
            pairs,
            mask_id=model.tokenizer.mask_id,
            pad_id=model.tokenizer.pad_id,
            block_size=model.block_size,
            seed=seed,
            context=context.value,
            num_bytes=text_bytes(model.tokenizer, pairs),
            progress=report.update,
        )


def _fitting_manifest(cache: CachePath, model: OpenModel) -> "Manifest":
    """Read a cache's manifest, and refuse a cache of another tokenizer."""
    from tide_cache.manifest import Manifest

    manifest = Manifest.load(cache)
    found, expected = manifest.identity.student_tokenizer, model.tokenizer.fingerprint()
    if found != expected:
        faults = [
            f"student tokenizer, {name}: cache has {found.get(name)}, the model's is {expected.get(name)}"
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        raise CacheMismatchError(
            fault_list(
                f"{cache} was not built for this model:",
                faults,
                "Give a cache that was built with the model's tokenizer, or leave --cache out.",
            )
        )
    return manifest


def _agreement(
    backbone: "Backbone", model: OpenModel, cache: CachePath, manifest: "Manifest", limit: int | None
) -> "AgreementReport":
    from tide_cache.evaluation import teacher_agreement
    from tide_cache.loading.cache import CacheSource, cache_collate_plan

    source = CacheSource(cache, manifest)
    samples = range(min(sum(source.group_sizes), limit or CACHE_SAMPLES))
    records = [r for view in range(manifest.identity.views.num_views) for r in source.records(samples, view)]
    plan = cache_collate_plan(manifest, model.tokenizer.mask_id, model.tokenizer.pad_id, model.block_size)
    with ProgressReport("agreement", "views") as report:
        return teacher_agreement(backbone, records, plan, progress=report.update)


def _print_nll(nll: "NllReport", model: OpenModel) -> None:
    print_fields(
        "Held-out NLL",
        [
            ("model", model.info.location),
            ("samples", f"{number(nll.num_samples)}, {number(nll.num_supervised)} supervised tokens"),
            ("context", f"{nll.context}, block size {model.block_size}, mask seed {nll.seed}"),
            ("mean NLL", f"{number(nll.mean_nll, 4)} nats per token, {number(nll.nats_per_byte, 4)} nats per byte"),
            ("mean accuracy", percent(nll.mean_accuracy)),
        ],
    )
    print_table(
        "By diffusion time",
        ["t", "masked tokens", "NLL (nats per token)", "accuracy"],
        [
            *((f"{e.t:.2f}", number(e.num_masked), number(e.nll, 4), percent(e.accuracy)) for e in nll.times),
            ("mean", "", number(nll.mean_nll, 4), percent(nll.mean_accuracy)),
        ],
    )


def _print_agreement(report: "AgreementReport") -> None:
    def row(name: str, entry: Any) -> tuple[str, ...]:
        return (
            name,
            number(entry.num_rows),
            percent(entry.top1_agreement),
            number(entry.kl, 4),
            number(entry.num_chunks),
            number(entry.chunk_logprob_difference, 4),
        )

    print_table(
        f"Agreement with the teacher on {number(report.num_views)} cached views",
        ["t", "rows", "same top-1", "KL, kept ids + rest (nats)", "chunks", "|log q - log p| (nats)"],
        [
            *(row(f"{entry.t_from:.1f}-{entry.t_to:.1f}", entry) for entry in report.by_time),
            row("all", report.overall),
        ],
    )
