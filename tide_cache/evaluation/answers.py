"""Answers as text: from conversations to the assistant's next turn, cut at stop strings and reported as they grow."""

from collections.abc import Callable, Sequence
from typing import Unpack

from tide_cache.decoding.options import SamplerOptions
from tide_cache.decoding.sampler import OnBlock, generate
from tide_cache.errors import RunFileError
from tide_cache.modeling.backbone import Backbone
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message

OnText = Callable[[int, str], None]
_BROKEN = "\ufffd"
"""What a decoder returns for a character whose last bytes are still missing."""


def generate_text(
    backbone: Backbone,
    tokenizer: TextTokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    on_block: OnBlock | None = None,
    stop_strings: Sequence[str] = (),
    on_text: OnText | None = None,
    **options: Unpack[SamplerOptions],
) -> list[str]:
    """Answer each conversation with the assistant's next turn.

    Args:
        backbone: The model.
        tokenizer: The model's own, with chat template and mask token.
        conversations: Messages of each; the last one is answered.
        on_block: As in `generate`.
        stop_strings: An answer ends before the first of these, even inside a token.
        on_text: Called after each block with the conversation's index and the part of its answer that later blocks
            cannot change; the rest comes with the result.
        options: As in `generate`.

    Returns:
        The answers; each ends before the first special token, since only templates write those.

    Raises:
        RunFileError: An empty stop string, or as `generate` does.
    """
    if "" in stop_strings:
        raise RunFileError("stop_strings: found an empty text, which is everywhere; expected at least one character")
    texts = [tokenizer.render(messages, add_generation_prompt=True).text for messages in conversations]
    prompts: list[list[int]] = [encoded.ids_L.tolist() for encoded in tokenizer.encode_many(texts)]

    def tell(index: int, ids: list[int]) -> None:
        if on_block is not None:
            on_block(index, ids)
        if on_text is not None:
            on_text(index, settled(cut(tokenizer.decode(ids), stop_strings), stop_strings))

    answers = generate(
        backbone,
        prompts,
        mask_id=tokenizer.mask_id,
        pad_id=tokenizer.pad_id,
        stop_ids=set(tokenizer.is_special_V.nonzero()[0].tolist()),
        on_block=tell,
        is_complete=lambda ids: has_any(tokenizer.decode(ids), stop_strings),
        **options,
    )
    return [cut(tokenizer.decode(ids), stop_strings) for ids in answers]


def has_any(text: str, stop_strings: Sequence[str]) -> bool:
    """Whether one of the stop strings is there, so that nothing after it can change the answer.

    Args:
        text: The text.
        stop_strings: None of them empty.
    """
    return any(stop in text for stop in stop_strings)


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text before the first stop string.

    Args:
        text: The text.
        stop_strings: Non-empty texts.
    """
    places = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def settled(text: str, stop_strings: Sequence[str]) -> str:
    """Return the part that no continuation can change: without an unfinished character or stop string at the end.

    Args:
        text: An answer so far, without any stop string.
        stop_strings: Non-empty texts.
    """
    text = text.rstrip(_BROKEN)
    begun = [n for stop in stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(begun)] if begun else text
