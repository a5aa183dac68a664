"""From masked views to teacher signals: pack, forward, head on masked rows, and sort the rows back to their views."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from tide_cache.aside import Aside
from tide_cache.config.sections import SignalsConfig
from tide_cache.config.settings import TeacherContext
from tide_cache.errors import PairingError, TeacherOutputError
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.batches import ViewGroup, plan_batches
from tide_cache.modeling.kept import keep_blocks
from tide_cache.modeling.moving import moved, on_device
from tide_cache.modeling.packing import pack_block, pack_causal, pack_full
from tide_cache.modeling.row_signals import Projection, RowSignals, start_row_signals
from tide_cache.records import MaskedView, SamplePair, TeacherSignal
from tide_cache.teacher.chunks import Speller
from tide_cache.teacher.conditional import Batch, shown_and_asked
from tide_cache.teacher.sorting import Sorter, as_arrays, first_student_ids
from tide_cache.views.masking import whole_view
from tide_cache.views.random import KeyedRandom


@dataclass(frozen=True)
class CaptureSettings:
    """How the teacher is run; the fields are those of the run file.

    Attributes:
        context: `full` (x_t alone, bidirectional), `block` ([x_t, x_0] under the block mask) or `causal` (the true
            tokens before each one; the signal of a token is the same in every view).
        block_size: Tokens per block.
        mask_id: The teacher's mask token; a causal teacher never sees it.
        shared_vocab_size: Ids below it mean the same for teacher and student.
        views_per_forward: Views packed on one clean copy in the block context.
        batch_tokens: Padded tokens of a forward.
        head_rows: Rows of a slice of the head.
        signals: What to keep.
        seed: Mask seed; keys the ids drawn from tails.
    """

    context: TeacherContext
    block_size: int
    mask_id: int
    shared_vocab_size: int
    views_per_forward: int
    batch_tokens: int
    head_rows: int
    signals: SignalsConfig
    seed: int = 0

    @property
    def copies(self) -> int:
        """Clean copies that are shown with the views of a group."""
        return int(self.context == "block")

    def batches(self, lengths: Sequence[int], num_views: Sequence[int]) -> list[list[ViewGroup]]:
        """Return the views of each forward; see `plan_batches`.

        Args:
            lengths: Teacher tokens of each sample.
            num_views: Number of views of each sample.
        """
        views_per_forward = self.views_per_forward if self.copies else 1
        return plan_batches(lengths, num_views, views_per_forward, self.copies, self.batch_tokens)


@dataclass(frozen=True, eq=False)
class _Answered:
    """The result of one forward: signals of all masked rows once they arrive, their places [B, n, L], and true tokens.

    Attributes:
        starts: Rows [S] that are a whole chunk of the teacher's, and their signals in student ids once they arrive, if
            the signal `projected` is wanted.
        further: Of each forward that showed the first true tokens of chunks: rows [R] that it was asked for, and their
            signals once they arrive.
    """

    arriving_rows: Callable[[], RowSignals]
    is_masked_BnL: np.ndarray
    true_N: np.ndarray
    starts: tuple[np.ndarray, Callable[[], RowSignals]] | None
    further: Sequence[tuple[np.ndarray, Callable[[], RowSignals]]]


class Teacher:
    """A model that gives its signals for masked views."""

    def __init__(
        self,
        backbone: Backbone,
        settings: CaptureSettings,
        spelling: Speller | None = None,
        is_sorted_aside: bool = False,
    ):
        """Wrap a model.

        Args:
            backbone: The model.
            settings: How to run it, and what to keep.
            spelling: Spells teacher tokens in student tokens; the signals `chunks` and `projected` need it.
            is_sorted_aside: Sort in a process of its own, for a GPU: kernels are launched by one thread, and another
                one that sorts would halve their rate.
        """
        self._backbone = backbone.eval()
        self._settings = settings
        self._spelling = spelling
        self._sorter = Sorter(settings.signals, settings.shared_vocab_size, spelling)
        self._aside = Aside(self._sorter) if is_sorted_aside else None
        self._first_V = None
        if spelling is not None and settings.signals.has_projected:
            self._first_V = self._moved(spelling.first_V.astype(np.int64))

    @property
    def backbone(self) -> Backbone:
        """The model."""
        return self._backbone

    @torch.no_grad()
    def signals(
        self,
        pairs: Sequence[SamplePair],
        views: Sequence[Sequence[MaskedView]],
        on_views: Callable[[int], None] | None = None,
    ) -> list[list[TeacherSignal]]:
        """Return the signal of every view of every sample.

        Args:
            pairs: The samples.
            views: For each sample its views.
            on_views: Called after every forward with the number of views it served; may raise to stop.

        Raises:
            TeacherOutputError: An output is not finite; names the sample and view.
            PairingError: A causal teacher is asked for a first token.
        """
        if self._settings.context == "causal":
            require_prefixes(pairs)
        result: list[list[TeacherSignal | None]] = [[None] * len(of_sample) for of_sample in views]
        batches = self._settings.batches(
            [len(pair.teacher_ids_M) for pair in pairs], [len(of_sample) for of_sample in views]
        )

        def sort_back(batch: Sequence[ViewGroup], chosen: Batch, answered: _Answered) -> None:
            for group, signals in zip(batch, self._sorted_back(chosen, answered), strict=True):
                for view, signal in zip(group.views, signals, strict=True):
                    result[group.sample][view] = signal

        # signals of a forward are sorted back, and candidates are spelled, while the next forward runs
        with ThreadPoolExecutor(max_workers=1) as sorter:
            previous: Future[None] | None = None
            for batch in batches:
                chosen = [(pairs[group.sample], [views[group.sample][v] for v in group.views]) for group in batch]
                answered = self._forward(chosen)
                if previous is not None:
                    previous.result()
                previous = sorter.submit(sort_back, batch, chosen, answered)
                if on_views is not None:
                    on_views(sum(len(group.views) for group in batch))
            if previous is not None:
                previous.result()
        return [[_present(signal) for signal in of_sample] for of_sample in result]

    def _forward(self, batch: Batch) -> _Answered:
        """Run one forward; every sample of the batch has the same number of views."""
        length = max(1, *(len(pair.teacher_ids_M) for pair, _ in batch))  # attention refuses length 0
        num_views = len(batch[0][1])
        x_0_BL = np.zeros((len(batch), length), np.int64)
        is_real_BL = np.zeros((len(batch), length), bool)
        is_masked_BnL = np.zeros((len(batch), num_views, length), bool)
        for b, (pair, views) in enumerate(batch):
            x_0_BL[b, : len(pair.teacher_ids_M)] = pair.teacher_ids_M
            is_real_BL[b, : len(pair.teacher_ids_M)] = True
            for n, view in enumerate(views):
                is_masked_BnL[b, n, : len(pair.teacher_ids_M)] = view.is_teacher_masked_M
        sample_N, view_N, position_N = np.nonzero(is_masked_BnL)
        told = x_0_BL, is_real_BL
        hidden_ND = self._hidden(*told, is_masked_BnL, (sample_N, view_N, position_N))
        true_N = x_0_BL[sample_N, position_N]
        pairs = [pair for pair, _ in batch]
        mass_N = self._sorter.wanted_mass(pairs, length)[sample_N, position_N]
        arriving_rows = start_row_signals(
            hidden_ND,
            self._backbone.head_VD,
            self._moved(true_N),
            torch.from_numpy(mass_N),
            self._settings.signals,
            self._settings.head_rows,
            self._moved(self._uniform(batch)) if self._settings.signals.tail_samples else None,
        )
        starts = None
        if self._first_V is not None:
            true_student_N = first_student_ids(pairs, length)[sample_N, position_N]
            starts = self._project(self._first_V, hidden_ND, true_N, true_student_N)
        further = [*self._ask_again(batch, *told, is_masked_BnL)]
        return _Answered(arriving_rows, is_masked_BnL, true_N, starts, further)

    def _hidden(
        self, x_0_BL: np.ndarray, is_real_BL: np.ndarray, is_masked_BnL: np.ndarray, places: tuple[np.ndarray, ...]
    ) -> torch.Tensor:
        """Run a forward, and return the hidden states from which masked tokens are predicted: [N, D].

        Args:
            x_0_BL: Clean tokens.
            is_real_BL: False at padding.
            is_masked_BnL: Tokens that the teacher does not see.
            places: Sample, view and position of each token wanted.
        """
        sample_N, view_N, position_N = places
        x_t_BnL = np.where(is_masked_BnL, self._settings.mask_id, x_0_BL[:, None])
        x_t, x_0, is_real = (self._moved(array) for array in (x_t_BnL, x_0_BL, is_real_BL))
        if self._settings.context == "block":
            rows = torch.from_numpy(sample_N), torch.from_numpy(view_N * x_0_BL.shape[1] + position_N)
            kept = on_device(keep_blocks(*rows, x_0_BL.shape, self._settings.block_size), self._backbone.device)
            place_N, packed = kept.place_N, pack_block(x_t, x_0, is_real, self._settings.block_size, kept=kept)
        elif self._settings.context == "causal":
            place_N, packed = self._moved(position_N - 1), pack_causal(x_0, is_real)
        else:
            place_N, packed = self._moved(position_N), pack_full(x_t[:, 0], is_real)
        hidden_ND: torch.Tensor = self._backbone(packed)[self._moved(sample_N), place_N]
        return hidden_ND

    def _ask_again(
        self, batch: Batch, x_0_BL: np.ndarray, is_real_BL: np.ndarray, is_masked_BnL: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Callable[[], RowSignals]]]:
        """Show the first true tokens of chunks, one more in each forward, while there are chunks that have more."""
        for shown in range(1, self._settings.signals.chunk_passes + 1):
            is_shown_BnL, is_asked_BnL = shown_and_asked(batch, x_0_BL.shape[1], shown)
            if not is_asked_BnL.any():
                return
            places = sample_R, _, position_R = np.nonzero(is_asked_BnL)
            is_hidden_BnL = is_masked_BnL & ~is_shown_BnL
            yield (
                np.flatnonzero(is_asked_BnL[is_masked_BnL]),
                start_row_signals(
                    self._hidden(x_0_BL, is_real_BL, is_hidden_BnL, places),
                    self._backbone.head_VD,
                    self._moved(x_0_BL[sample_R, position_R]),
                    torch.ones(len(position_R)),
                    self._settings.signals,
                    self._settings.head_rows,
                ),
            )

    def _project(
        self, first_V: torch.Tensor, hidden_ND: torch.Tensor, true_N: np.ndarray, true_student_N: np.ndarray
    ) -> tuple[np.ndarray, Callable[[], RowSignals]]:
        """Return the rows that have a true student token, and start their signals in student ids."""
        assert self._spelling is not None
        signals, start_row_S = self._settings.signals, np.flatnonzero(true_student_N >= 0)
        true_S = self._moved(true_N[start_row_S])
        return start_row_S, start_row_signals(
            hidden_ND[self._moved(start_row_S)],
            self._backbone.head_VD,
            self._moved(true_student_N[start_row_S]),
            torch.full((len(start_row_S),), signals.top_p),
            signals,
            self._settings.head_rows,
            projection=Projection(first_V, self._spelling.num_student_ids, true_S),
        )

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        return moved(torch.from_numpy(array), self._backbone.device)

    def _sorted_back(self, batch: Batch, answered: _Answered) -> list[list[TeacherSignal]]:
        """Return the result of a forward as the signals of its views."""
        rows = answered.arriving_rows()
        _require_finite(rows, batch, answered.is_masked_BnL)
        further = [(row_R, said()) for row_R, said in answered.further]
        for row_R, said in further:
            _require_finite(said, batch, answered.is_masked_BnL, row_R)
        starts = None if answered.starts is None else (answered.starts[0], answered.starts[1]())
        what = batch, answered.is_masked_BnL, answered.true_N
        if self._aside is None:
            return self._sorter.signals(*what, rows, starts, further)
        arrays = None if starts is None else (starts[0], as_arrays(starts[1]))
        told = [(row_R, as_arrays(said)) for row_R, said in further]
        signals: list[list[TeacherSignal]] = self._aside.call("signals_of_arrays", *what, as_arrays(rows), arrays, told)
        return signals

    def _uniform(self, batch: Batch) -> np.ndarray:
        """Return the numbers that draw ids from tails, for every masked row; keyed by sample, view and position."""
        draws = self._settings.signals.tail_samples
        every = [np.zeros((0, draws), np.float32)]
        for pair, views in batch:
            for view in views:
                random = KeyedRandom("tail", self._settings.seed, view.sample_id, view.view)
                uniform_MD = random.uniform(len(pair.teacher_ids_M) * draws).reshape(-1, draws)
                every.append(uniform_MD[view.is_teacher_masked_M])
        return np.concatenate(every)


def require_prefixes(pairs: Iterable[SamplePair]) -> None:
    """Raise an error for samples whose first teacher token may be masked: a causal model cannot predict it.

    Raises:
        PairingError: Names the first of them.
    """
    for pair in pairs:
        if (whole_view(pair).is_teacher_masked_M[:1]).any():
            raise PairingError(
                f"sample {pair.sample_id!r}: its first teacher token is supervised, and a causal teacher says nothing "
                "of a token without one before it. Expected a prompt, or a token that opens the text, before each "
                "answer; or take a diffusion teacher (teacher.context = 'block' or 'full')."
            )


def _require_finite(
    rows: RowSignals, batch: Batch, is_masked_BnL: np.ndarray, row_R: np.ndarray | slice = slice(None)
) -> None:
    """Name the view of the first row that is not finite.

    Args:
        rows: Signals of all masked tokens, or of some.
        batch: Samples and views.
        is_masked_BnL: Masked tokens.
        row_R: Which of them `rows` are.
    """
    is_finite_N = rows.truth_logprobs_N.isfinite() & ~rows.log_partition_NT.isnan().any(dim=1)
    if not is_finite_N.all():
        sample, view, _ = np.argwhere(is_masked_BnL)[row_R][int((~is_finite_N).nonzero()[0])]
        bad = batch[sample][1][view]
        raise TeacherOutputError(
            f"the teacher's output is not finite for sample {bad.sample_id!r}, view {bad.view}; nothing of this shard "
            "was published. Check the checkpoint, or use dtype = 'float32'"
        )


def _present(signal: TeacherSignal | None) -> TeacherSignal:
    assert signal is not None, "the batch plan left a view out"
    return signal
