"""Which true tokens further forwards show: the first ones of every chunk that has more of them.

A teacher that is masked at a whole chunk predicts its tokens independently, and knows little of a word in several.
Asked again, with the first token shown, it says what follows this token: the chain rule, token after token.
docs/decisions/conditional-chunks.md.

Shape suffixes: B samples, n views of each, L padded teacher tokens, C chunks.
"""

from collections.abc import Sequence

import numpy as np

from tide_cache.records import Bools, Int32s, MaskedView, SamplePair
from tide_cache.views.masking import spans_to_mask

Batch = Sequence[tuple[SamplePair, list[MaskedView]]]
"""Samples with the views that share a forward; all have the same number of views."""


def shown_and_asked(batch: Batch, length: int, shown: int) -> tuple[Bools, Bools]:
    """Return the masked teacher tokens that a further forward shows, and those that it asks for: [B, n, L] each.

    Only chunks with a loss that the teacher does not see count, and only those of more than `shown` tokens. All others
    stay masked as they are in the view.

    Args:
        batch: Samples and views.
        length: Padded teacher tokens.
        shown: First tokens of a chunk that are shown.
    """
    is_shown_BnL, is_asked_BnL = (np.zeros((len(batch), len(batch[0][1]), length), bool) for _ in range(2))
    for b, (pair, views) in enumerate(batch):
        for n, view in enumerate(views):
            start_C, end_C = pair.chunks_C4[hidden_chunks(pair, view), :2].T
            is_longer_C = end_C - start_C > shown
            start_C, end_C = start_C[is_longer_C], end_C[is_longer_C]
            is_shown_BnL[b, n] = spans_to_mask(start_C, start_C + shown, length)
            is_asked_BnL[b, n] = spans_to_mask(start_C + shown, end_C, length)
    return is_shown_BnL, is_asked_BnL


def hidden_chunks(pair: SamplePair, view: MaskedView) -> Int32s:
    """Return the chunks with a loss that the teacher does not see; a part of them in a partial view of CompDemo."""
    is_hidden_C = view.is_teacher_masked_M[pair.chunks_C4[:, 0]]
    return np.flatnonzero(pair.is_distillable_C & is_hidden_C).astype(np.int32)
