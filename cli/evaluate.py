"""`tide-cache eval`: held-out NLL over diffusion time, and agreement with the teacher."""

import json as json_format
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from tide_cache.config.settings import Context, Precision
from tide_cache.disk import write_whole
from tide_cache.errors import RunFileError
from tide_cache.locations import cache_path
from tide_cache.places import require_cache, require_checkpoint

from .checkpoints import BlockSize, Checkpoint, open_model
from .console import chatter_to_stderr, number, percent, print_fields, print_json, print_table, say
from .options import BadRow, Json
from .progress import ProgressReports

if TYPE_CHECKING:
    from tide_cache.evaluation import AgreementReport, NllReport
    from tide_cache.evaluation.trained import TrainedModel

MOVED = {
    "--suite", "--tasks", "--task-data", "--baseline", "--no-baseline", "--allow-code-execution", "--code-isolation",
    "--num-samples", "--think-prefix", "--chat-template", "--no-chat-template", "--batch-size",
}  # fmt: skip
"""Options that `eval` had before `eval-tasks` existed."""


class EvalCommand(TyperCommand):
    """The command; it says where the task options went."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse options of `eval-tasks`, and name the command that takes them."""
        moved = [name for argument in args if (name := argument.partition("=")[0]) in MOVED]
        if moved and not ctx.resilient_parsing:
            raise RunFileError(
                f"{moved[0]}: tasks are scored by `tide-cache eval-tasks`; `eval` measures on text. Run:\n"
                f"  tide-cache eval-tasks {shlex.join(args)}"
            )
        return super().parse_args(ctx, args)


def evaluate(
    checkpoint: Checkpoint,
    dataset: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Held-out corpus; as for `train`.", show_default=False)
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Also compare with the teacher on the views of this cache.", show_default=False
        ),
    ] = None,
    block_size: BlockSize = None,
    max_length: Annotated[int, typer.Option(min=1, help="Maximum sequence length, in tokens.")] = 512,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of samples; by default the whole corpus, and 1000 of the cache.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks; compare models with the same one.")] = 0,
    context: Annotated[
        Context,
        typer.Option(
            help="What the model sees. block: [x_t, x_0] under the block mask. full: x_t alone, bidirectional."
        ),
    ] = "block",
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights.")] = "float32",
    on_bad_row: BadRow = None,
    by_row: Annotated[
        bool, typer.Option("--by-row", help="Add the sums of every sample to the JSON, for intervals over samples.")
    ] = False,
    json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the JSON document to this file.", show_default=False),
    ] = None,
) -> None:
    """Measure a model on held-out text, over diffusion time. For benchmarks, see `eval-tasks`."""
    if dataset is None:
        raise RunFileError(
            "nothing to measure on; give --dataset SPEC. Benchmarks: tide-cache eval-tasks CHECKPOINT --suite tide"
        )
    if out is not None and not out.parent.is_dir():
        raise RunFileError(f"--out {out}: found no folder {out.parent}; create it first")
    require_checkpoint(checkpoint)
    if cache is not None:
        require_cache(cache_path(cache))
    with chatter_to_stderr():
        from tide_cache.evaluation.measuring import held_out_samples, measure, require_fitting_cache

        model = open_model(checkpoint, block_size, dtype=dtype)
        model.require_fits(max_length)
        if cache is not None:
            require_fitting_cache(cache_path(cache), model.tokenizer)
        held_out = held_out_samples(
            dataset,
            model,
            max_length,
            limit=limit,
            on_bad_row=on_bad_row or "error",
            section="--dataset",
            length_key="--max-length",
        )
        for remark in held_out.remarks:
            say(remark)
        with ProgressReports("views") as reports:
            found = measure(
                model, held_out.pairs, cache=cache, limit=limit, seed=seed, context=context,
                by_row=by_row, progress=reports.update,
            )  # fmt: skip
    document = {
        "checkpoint": checkpoint,
        "dataset": dataset,
        "block_size": model.block_size,
        "max_length": max_length,
        "dtype": dtype,
        "remarks": held_out.remarks,
        "nll": asdict(found.nll),
        "agreement": asdict(found.agreement) if found.agreement else None,
    }
    if (day := model.tokenizer.today) is not None:
        document["template_date"] = day.isoformat()
    if json:
        print_json(document)
    else:
        _print_nll(found.nll, model)
        if found.agreement is not None:
            _print_agreement(found.agreement)
    if out is not None:
        write_whole(out, json_format.dumps(document, indent=2) + "\n")


def _print_nll(nll: "NllReport", model: "TrainedModel") -> None:
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
