"""`tide-cache convert`: a student to start from, out of a causal checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from .console import chatter_to_stderr, print_json, print_text
from .options import Json


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Causal Qwen3, Qwen2 or Llama checkpoint: a folder, or a hub name.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write; must not exist.", show_default=False)],
    mask_token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The mask token; by default the tokenizer's own, else `<|mask|>`. Appended where it is missing.",
            show_default=False,
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Jinja file, for a tokenizer without a chat template.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Of a hub checkpoint.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Turn a causal checkpoint into a block-diffusion student to train."""
    from dataclasses import asdict

    with chatter_to_stderr():
        from tide_cache.student.convert import convert as converted

        done = converted(source, out, mask_token=mask_token, chat_template=chat_template, revision=revision)
    if json:
        print_json({"source": source, "out": str(out), **asdict(done)})
        return
    token = f"{done.mask_token}, id {done.mask_id}"
    if not done.is_mask_added:
        what = f"Mask token {token}: was there already, all weights are kept"
    elif done.num_rows == done.num_rows_before:
        what = f"Mask token {token}: added, in a padding row of the embedding's {done.num_rows:,}"
    else:
        what = f"Mask token {token}: added; the embedding grew from {done.num_rows_before:,} to {done.num_rows:,} rows"
    print_text(f"{what}.\n{out}: a {done.model_type} student to start from; train it before it is asked anything.")
