"""`tide-cache convert`: make a student to train from a causal checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from tide_cache.places import require_checkpoint, require_new

from .console import chatter_to_stderr, print_json, print_text
from .options import Json


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Causal Qwen3, Qwen2 or Llama checkpoint: a folder, a hub name, or a GGUF file."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write; must not exist.", show_default=False)],
    mask_token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Mask token; by default the tokenizer's own, else `<|mask|>`. Added if it is missing.",
            show_default=False,
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Jinja file to use when the tokenizer has no chat template.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="COMMIT", help="Branch, tag or commit of SOURCE on the hub.", show_default=False),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="GGUF file to read, if SOURCE has several.", show_default=False),
    ] = None,
    num_layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Keep this many layers, evenly spaced from the first to the last.", show_default=False
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="0,1,..", help="Keep these layers, numbered from 0.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Use another tokenizer for the student, a folder or a hub name. Its embedding rows are made from "
            "those of the checkpoint's tokens.",
            show_default=False,
        ),
    ] = None,
    tokenizer_revision: Annotated[
        str | None,
        typer.Option(metavar="COMMIT", help="Branch, tag or commit of --tokenizer on the hub.", show_default=False),
    ] = None,
    pad_vocab: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MULTIPLE",
            help="Fill the vocabulary's rows up to a multiple of this, 64 for a GPU. All rows without a token are then "
            "never sampled and never scored.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Turn a causal checkpoint into a block-diffusion student to train."""
    from dataclasses import asdict

    require_new(out)
    if not (Path(source).is_file() or source.endswith(".gguf")):
        require_checkpoint(source)
    chosen = None if layers is None else _numbers(layers)
    with chatter_to_stderr():
        from tide_cache.student.convert import convert as converted

        done = converted(
            source,
            out,
            mask_token=mask_token,
            chat_template=chat_template,
            revision=revision,
            num_layers=num_layers,
            layers=chosen,
            tokenizer=tokenizer,
            tokenizer_revision=tokenizer_revision,
            gguf=gguf,
            pad_vocab=pad_vocab,
        )
    if json:
        print_json({"source": source, "out": str(out), **asdict(done)})
        return
    token = f"{done.mask_token}, id {done.mask_id}"
    if done.tokenizer is not None:
        what = f"Mask token {token}"
    elif not done.is_mask_added:
        what = f"Mask token {token}: already there, all weights are kept"
    elif done.num_rows == done.num_rows_before:
        what = f"Mask token {token}: added, in a padding row of the embedding's {done.num_rows:,}"
    else:
        what = f"Mask token {token}: added; the embedding grew from {done.num_rows_before:,} to {done.num_rows:,} rows"
    if done.layers is not None:
        what += f".\nLayers kept: {', '.join(map(str, done.layers))}"
    if done.tokenizer is not None:
        what = (
            f"Tokenizer: {done.tokenizer}; {done.num_rows:,} rows made from the {done.num_rows_before:,} of the source"
            f".\n{what}"
        )
    if pad_vocab is not None:
        what += f".\nVocabulary: {done.num_rows:,} rows, those from {done.num_ids:,} on are padding"
    print_text(f"{what}.\n{out}: a {done.model_type} student to start from. Train it before you ask it anything.")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"found {text!r}, expected comma-separated numbers, like 0,1,2") from None
