"""`tide-cache generate`: answers from a trained model, block by block."""

from typing import TYPE_CHECKING, Annotated

import typer

from .checkpoints import BlockSize, Checkpoint, OpenModel, open_model
from .console import chatter_to_stderr, print_json, print_text
from .options import Json
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.modeling.backbone import Backbone


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="What the user says. Repeatable.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    steps_per_block: Annotated[
        int | None,
        typer.Option(min=1, help="Forwards per block; by default one for each of its tokens.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws at a temperature above 0.")] = 0,
    block_size: BlockSize = None,
    json: Json = False,
) -> None:
    """Answer prompts with the block diffusion sampler."""
    with chatter_to_stderr():
        model = open_model(checkpoint, block_size)
        backbone = model.load()
        answers = _answers(backbone, model, prompt, max_new_tokens, steps_per_block, temperature, seed)
    if json:
        entries = [{"prompt": text, "answer": answer} for text, answer in zip(prompt, answers, strict=True)]
        print_json({"checkpoint": checkpoint, "answers": entries})
        return
    for text, answer in zip(prompt, answers, strict=True):
        print_text(f"> {text}\n{answer}\n" if len(prompt) > 1 else answer)


def _answers(
    backbone: "Backbone",
    model: OpenModel,
    prompts: list[str],
    max_new_tokens: int,
    steps_per_block: int | None,
    temperature: float,
    seed: int,
) -> list[str]:
    import torch

    from tide_cache.evaluation import generate_text
    from tide_cache.records import Message

    num_tokens = [0] * len(prompts)
    with ProgressReport("generate", "tokens at most") as report:

        def on_block(index: int, tokens: list[int]) -> None:
            num_tokens[index] = len(tokens)
            report.update(sum(num_tokens), max_new_tokens * len(prompts))

        return generate_text(
            backbone,
            model.tokenizer,
            [[Message("user", text)] for text in prompts],
            on_block=on_block,
            block_size=model.block_size,
            max_new_tokens=max_new_tokens,
            steps_per_block=steps_per_block or model.block_size,
            temperature=temperature,
            generator=torch.Generator(backbone.device).manual_seed(seed),
        )
