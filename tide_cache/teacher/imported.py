"""A teacher that is not asked: what an engine said of the true text takes the place of forwards.

Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tide_cache.arrays import sums_before
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import RowSignals, kept_counts
from tide_cache.records import MaskedView, SamplePair, TeacherSignal
from tide_cache.teacher.capture import require_prefixes
from tide_cache.teacher.chunks import Speller
from tide_cache.teacher.engine_rows import EngineRow
from tide_cache.teacher.engine_topk import EngineTopK
from tide_cache.teacher.sorting import Sorter


class ImportedTeacher:
    """A causal teacher whose next-token distributions an engine wrote down."""

    def __init__(
        self,
        topk: EngineTopK,
        vocab_size: int,
        signals: SignalsConfig,
        shared_vocab_size: int,
        spelling: Speller | None = None,
    ) -> None:
        """Take the files for a model.

        Args:
            topk: What the engine wrote.
            vocab_size: Ids of the teacher are below it.
            signals: What to keep; at most as many ids as the files list, and tails at T = 1.
            shared_vocab_size: Ids below it mean the same for teacher and student.
            spelling: Writes teacher tokens in student tokens; the signal `chunks` needs it.
        """
        assert signals.ids_per_row <= topk.depth, "more ids than there are"
        assert signals.temperatures == (1.0,), "a tail of top-k is known at T = 1 alone"
        self._topk, self._vocab_size, self._signals = topk, vocab_size, signals
        self._sorter = Sorter(signals, shared_vocab_size, spelling)

    def signals(
        self,
        pairs: Sequence[SamplePair],
        views: Sequence[Sequence[MaskedView]],
        on_views: Callable[[int], None] | None = None,
    ) -> list[list[TeacherSignal]]:
        """Return the signal of every view of every sample; as `Teacher.signals`.

        Args:
            pairs: The samples.
            views: For each sample its views.
            on_views: Called after every sample with the number of its views; may raise to stop.

        Raises:
            EngineFileError: The files have no row of a sample.
            PairingError: A first token is asked for.
        """
        require_prefixes(pairs)
        result = []
        for pair, of_sample in zip(pairs, views, strict=True):
            is_masked_1nL = np.array([[view.is_teacher_masked_M for view in of_sample]], bool)
            _, _, position_N = np.nonzero(is_masked_1nL)
            mass_N = self._sorter.wanted_mass([pair], len(pair.teacher_ids_M))[0, position_N]
            rows = _rows_at(self._topk.of(pair), position_N, mass_N, self._signals.ids_per_row, self._vocab_size)
            batch = [(pair, list(of_sample))]
            result += self._sorter.signals(batch, is_masked_1nL, pair.teacher_ids_M[position_N], rows)
            if on_views is not None:
                on_views(len(of_sample))
        return result


def _rows_at(row: EngineRow, position_N: np.ndarray, mass_N: np.ndarray, top_k: int, vocab_size: int) -> RowSignals:
    """Return what is said at some positions, as a model's head would give it.

    What is not listed is 1 minus what is; it is no more than as many ids could hold that are no likelier than the last.
    """
    starts_M = sums_before(row.depths_M)
    place_NK = starts_M[position_N][:, None] + np.arange(top_k)
    ids_NK, logprobs_NK = row.ids_E[place_NK], row.logprobs_E[place_NK]
    truth_N = row.truth_logprobs_M[position_N]
    counts_N = kept_counts(torch.from_numpy(logprobs_NK), torch.from_numpy(mass_N))
    probs_NK = np.exp(logprobs_NK.astype(np.float64))
    rest_N = 1 - probs_NK.sum(axis=1)
    if top_k:
        is_listed_N = (ids_NK == row.token_ids_M[position_N][:, None]).any(axis=1)
        least_N = np.where(is_listed_N, 0, np.exp(truth_N.astype(np.float64)))
        rest_N = np.clip(rest_N, least_N, np.maximum((vocab_size - top_k) * probs_NK[:, -1], least_N))
    is_dropped_NK = np.arange(top_k) >= counts_N.numpy()[:, None]
    with np.errstate(divide="ignore"):
        log_tail_N1 = np.log(rest_N + (probs_NK * is_dropped_NK).sum(axis=1))[:, None]
    log_tail_N1 = np.where(counts_N.numpy()[:, None] > 0, log_tail_N1, 0).astype(np.float32)
    nothing_N0 = torch.zeros((len(position_N), 0))
    return RowSignals(
        truth_logprobs_N=torch.from_numpy(truth_N),
        is_top1_N=torch.from_numpy(row.is_top1_M[position_N]),
        counts_N=counts_N,
        ids_NK=torch.from_numpy(ids_NK.astype(np.int64)),
        logprobs_NK=torch.from_numpy(logprobs_NK),
        log_tail_NT=torch.from_numpy(log_tail_N1),
        log_partition_NT=torch.zeros((len(position_N), 1)),
        tail_ids_ND=nothing_N0.long(),
        tail_logprobs_ND=nothing_N0,
    )
