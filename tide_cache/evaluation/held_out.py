"""What a held-out corpus weighs in the model's own tokens."""

from collections.abc import Iterable

from tide_cache.pairing import TextTokenizer
from tide_cache.records import SamplePair


def text_bytes(tokenizer: TextTokenizer, pairs: Iterable[SamplePair]) -> int | None:
    """Count the bytes that supervised tokens spell, special tokens apart; None when they spell nothing.

    Args:
        tokenizer: The model's.
        pairs: Samples in its tokens.
    """
    num_bytes = 0
    for pair in pairs:
        ids_N = pair.student_ids_L[pair.is_supervised_L]
        num_bytes += len(tokenizer.token_bytes.join(ids_N[~tokenizer.is_special_V[ids_N]].tolist()))
    return num_bytes or None
