"""The order in which an answer was revealed, by the bytes of its text, so that any tokenizer can read it."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tide_cache.pairing import TextTokenizer


def pieces_of(tokenizer: TextTokenizer, ids: Sequence[int], steps: Sequence[int], text: str) -> list[list[int]]:
    """Return the tokens of an answer as pairs: bytes of its text, and the step at which it was revealed.

    The bytes add up to those of the text. A last pair without bytes is the end of the turn, if the model wrote it.

    Args:
        tokenizer: The model's tokenizer.
        ids: The tokens that it wrote, without a stop id.
        steps: The step at which each was revealed, also for a stop id.
        text: The answer: all of their text, or its beginning.
    """
    ends = np.minimum(_ends(tokenizer, ids), len(text.encode()))
    pairs = zip(pairwise([0, *ends.tolist()]), steps, strict=False)
    pieces = [[end - start, step] for (start, end), step in pairs if end > start]
    is_whole = len(text) == len(tokenizer.decode(ids))
    return [*pieces, *([[0, step] for step in steps[len(ids) :]] if is_whole else [])]


def _ends(tokenizer: TextTokenizer, ids: Sequence[int]) -> np.ndarray:
    """Return where each token ends in the bytes of the decoded text."""
    ids_L = np.array(ids, dtype=np.int32)
    if tokenizer.token_bytes.join(ids) == tokenizer.decode(ids).encode():
        ends_L: np.ndarray = np.asarray(tokenizer.token_bytes.ends(ids_L))
        return ends_L
    # a decoder that drops a space, or half a character at the end: decode every prefix
    lengths = [len(tokenizer.decode(ids[: count + 1]).rstrip("\ufffd").encode()) for count in range(len(ids))]
    lengths[-1:] = [len(tokenizer.decode(ids).encode())] if ids else []
    return np.maximum.accumulate(np.array(lengths, dtype=np.int64)) if lengths else np.zeros(0, np.int64)
