"""`tide-cache generate`: get answers from a trained model, block by block, to prompts or in a conversation."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.config.settings import Remasking
from tide_cache.errors import RunFileError, fault_list
from tide_cache.places import require_checkpoint

from .checkpoints import BlockSize, Checkpoint, open_model
from .console import chatter_to_stderr, print_json, print_text, say
from .options import (
    CFG_SCALE,
    MAX_NEW_TOKENS,
    REMASKING,
    SEED,
    STEPS_PER_BLOCK,
    STOP,
    TEMPERATURE,
    THRESHOLD,
    Json,
    TopK,
    TopP,
)
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.evaluation import OnBlock, OnText, SamplerOptions
    from tide_cache.evaluation.trained import TrainedModel
    from tide_cache.records import Message


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text of the user's turn. Repeatable.", show_default=False)
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Hold a conversation: each line of stdin is the user's next turn.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message before the first turn.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, MAX_NEW_TOKENS] = 128,
    steps_per_block: Annotated[int | None, STEPS_PER_BLOCK] = None,
    threshold: Annotated[float | None, THRESHOLD] = None,
    remasking: Annotated[Remasking, REMASKING] = "low_confidence",
    temperature: Annotated[float, TEMPERATURE] = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[int, SEED] = 0,
    cfg_scale: Annotated[float, CFG_SCALE] = 0.0,
    stop: Annotated[list[str] | None, STOP] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the answer block by block; the default on a terminal, for one prompt or a conversation.",
            show_default=False,
        ),
    ] = None,
    use_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Cache keys and values of finished blocks, or recompute them.")
    ] = True,
    block_size: BlockSize = None,
    json: Json = False,
) -> None:
    """Answer prompts, or hold a conversation, with the block diffusion sampler."""
    prompts, stops = prompt or [], stop or []
    _require_sense(prompts, chat, stream, json, stops)
    require_checkpoint(checkpoint)
    with chatter_to_stderr():
        from tide_cache.decoding.options import decoding_faults
        from tide_cache.records import Message

        model = open_model(checkpoint, block_size, as_trained=False)
        options: SamplerOptions = {
            "block_size": model.block_size,
            "max_new_tokens": max_new_tokens,
            "steps_per_block": steps_per_block or model.block_size,
            "threshold": threshold,
            "remasking": remasking,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "cfg_scale": cfg_scale,
            "use_cache": use_cache,
        }
        if faults := decoding_faults(options):
            raise RunFileError(fault_list("nothing can be generated:", faults, "Nothing was loaded."))
        speaker = _Speaker(model, options, stops, seed)
    is_streamed = stream if stream is not None else sys.stdout.isatty() and (chat or len(prompts) == 1) and not json
    first = [Message("system", system)] if system is not None else []
    if chat:
        _converse(speaker, first, is_streamed)
        return
    conversations = [[*first, Message("user", text)] for text in prompts]
    if is_streamed:
        speaker.stream(conversations[0])
        return
    answers = speaker.answer(conversations)
    if json:
        entries = [{"prompt": text, "answer": answer} for text, answer in zip(prompts, answers, strict=True)]
        print_json({"checkpoint": checkpoint, "answers": entries})
        return
    for text, answer in zip(prompts, answers, strict=True):
        print_text(f"> {text}\n{answer}\n" if len(prompts) > 1 else answer)


def _require_sense(prompts: list[str], chat: bool, stream: bool | None, json: bool, stops: list[str]) -> None:
    """Refuse options that contradict each other, all at once, before anything is loaded."""
    faults = []
    if chat and prompts:
        faults.append("--chat reads what the user says from stdin; leave --prompt out, or --chat")
    if not chat and not prompts:
        faults.append("found no prompt; give --prompt TEXT, or --chat for a conversation")
    if json and chat:
        faults.append("--json prints one document, --chat holds a live conversation; leave one out")
    if json and stream:
        faults.append("--json prints at the end, --stream prints as blocks finish; leave one out")
    if stream and len(prompts) > 1:
        faults.append(
            f"--stream: found {len(prompts)} prompts, which are sampled in one batch; give one, or --no-stream"
        )
    if "" in stops:
        faults.append("--stop: found an empty string; expected at least one character")
    if faults:
        raise RunFileError(fault_list("nothing can be generated:", faults, "Nothing was loaded."))


@dataclass
class _Speaker:
    """A loaded model that answers; one seed determines the draws of all answers."""

    model: "TrainedModel"
    options: "SamplerOptions"
    stops: list[str]
    seed: int
    _printed: str = field(default="", init=False)

    def __post_init__(self) -> None:
        import torch

        self.options["generator"] = torch.Generator(self.model.backbone.device).manual_seed(self.seed)

    def answer(self, conversations: "list[list[Message]]") -> list[str]:
        """Answer with a progress report."""
        num_tokens = [0] * len(conversations)
        with ProgressReport("generate", "tokens at most") as report:

            def on_block(index: int, tokens: list[int]) -> None:
                num_tokens[index] = len(tokens)
                report.update(sum(num_tokens), self.options["max_new_tokens"] * len(conversations))

            return self._generate(conversations, on_block=on_block)

    def stream(self, conversation: "list[Message]") -> str:
        """Print an answer block by block."""
        self._printed = ""
        (answer,) = self._generate([conversation], on_text=lambda _, text: self._print(text))
        self._print(answer)
        print(flush=True)
        return answer

    def _print(self, text: str) -> None:
        print(text[len(self._printed) :], end="", flush=True)
        self._printed = text

    def _generate(
        self,
        conversations: "list[list[Message]]",
        on_block: "OnBlock | None" = None,
        on_text: "OnText | None" = None,
    ) -> list[str]:
        from tide_cache.evaluation import generate_text

        return generate_text(
            self.model.backbone, self.model.tokenizer, conversations, on_block=on_block, on_text=on_text,
            stop_strings=self.stops, **self.options,
        )  # fmt: skip


def _converse(speaker: _Speaker, messages: "list[Message]", is_streamed: bool) -> None:
    """Answer each line of stdin; every answer sees all earlier turns."""
    from tide_cache.records import Message

    for text in _lines():
        messages.append(Message("user", text))
        if is_streamed:
            answer = speaker.stream(messages)
        else:
            (answer,) = speaker.answer([messages])
            print_text(answer)
        messages.append(Message("assistant", answer))


def _lines() -> Iterator[str]:
    """Yield the non-empty lines of stdin; on a terminal, ask for each."""
    if not sys.stdin.isatty():
        yield from (text for line in sys.stdin if (text := line.strip()))
        return
    say("Each line is a turn; Ctrl-D ends the conversation.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if text:
            yield text
