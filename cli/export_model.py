"""`tide-cache export-model`: write a student in the layout of a serving program."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tide_cache.places import require_checkpoint, require_new

from .console import chatter_to_stderr, print_json, print_text
from .options import Json, Private, PushToHub
from .push import find_destination, push_finished

if TYPE_CHECKING:
    from tide_cache.student.exporting import ExportedModel


def export_model(
    source: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a training run, its model, or a hub name of a student.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write; must not exist.", show_default=False)],
    format: Annotated[
        Literal["sdar", "a2d", "hf"],
        typer.Option(
            help="Layout: sdar for SGLang and LMDeploy, a2d as `train` writes it, hf for the stock architecture."
        ),
    ] = "sdar",
    block_size: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per block, if the model does not state it.", show_default=False),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Default confidence threshold for decoding, above 0 and at most 1.")
    ] = 0.9,
    any_mask_id: Annotated[
        bool,
        typer.Option("--any-mask-id", help="Write sdar even if its mask id differs from the one built into engines."),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="COMMIT", help="Branch, tag or commit of a hub checkpoint.", show_default=False),
    ] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    json: Json = False,
) -> None:
    """Write a student for a serving engine, with tokenizer, decoding defaults and model card."""
    require_new(out)
    destination = find_destination(push_to_hub, private)
    if not (Path(source) / "model").is_dir():
        require_checkpoint(source)
    with chatter_to_stderr():
        from tide_cache.student.exporting import export_model as exported

        if destination is not None:
            destination.claim()
        done = exported(
            source, out, format, block_size=block_size, threshold=threshold, any_mask_id=any_mask_id, revision=revision
        )
    if not json:
        print_text(f"{done.folder}: {done.model_type}, blocks of {done.block_size}, mask id {done.mask_id}.")
        if format == "sdar":
            print_text(_serving(done))
    page = None if destination is None else push_finished(done.folder, destination)
    if json:
        print_json({**asdict(done), "folder": str(done.folder), "page": page})
    elif page is not None:
        print_text(f"Uploaded to {page}")


def _serving(done: "ExportedModel") -> str:
    """Return the commands that serve the model."""
    from tide_cache.student.exporting import SDAR_MASK_ID

    if done.mask_id != SDAR_MASK_ID:
        return (
            f"SGLang and LMDeploy take mask id {SDAR_MASK_ID} for SDAR: serve it with an engine that reads "
            "mask_token_id from config.json."
        )
    return (
        "SGLang:\n"
        f"printf 'block_size: {done.block_size}\\nthreshold: {done.threshold:g}\\n' > dllm.yaml\n"
        f"python -m sglang.launch_server --model-path {done.folder} --trust-remote-code \\\n"
        "  --dllm-algorithm LowConfidence --dllm-algorithm-config dllm.yaml\n"
        "LMDeploy:\n"
        f"lmdeploy serve api_server {done.folder} --dllm-block-length {done.block_size} \\\n"
        f"  --dllm-confidence-threshold {done.threshold:g}"
    )
