"""Views of one source, ready for batches: all is found out that does not depend on which views share a batch.

What is found is a table. Each column has one value per view, masked row, active chunk and so on of each view, end to
end; numbers of rows, chunks and candidates count within the view. A row group is made ready as a whole, once. A batch
takes the parts of its views out of some tables, puts them end to end and lets the numbers count through (`taking.py`).

Shape suffixes as in `tide_cache.records`; B views.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from tide_cache.arrays import Int64s, Ints, sums_before
from tide_cache.config.settings import Schedule
from tide_cache.loading.candidates import candidates_of, drawn_of, gather_places, kept_as_candidates
from tide_cache.loading.joining import ActiveChunks, JoinedViews
from tide_cache.loading.sharing import told_topk
from tide_cache.shards import Array, Ragged
from tide_cache.signal_table import Temperatures
from tide_cache.views.masking import is_complement
from tide_cache.views.schedule import time_weight
from tide_cache.views.weights import ViewLaw, denoising_weights, unit_sizes

ReadyAxis = Literal[
    "view", "token", "row", "row temperature", "extra", "entry", "kept", "draw", "chunk", "chunk temperature",
    "candidate", "candidate token",
]  # fmt: skip
"""What a column has one value per: a view; a token; a masked row; each temperature of one; a further id of a row; a row
with kept ids; a kept id; a drawn id; an active chunk; each temperature of one; a candidate of one; a token of it."""

READY: dict[str, tuple[ReadyAxis, ReadyAxis | None]] = {
    "t": ("view", None),
    "time_weight": ("view", None),
    "num_supervised": ("view", None),
    "student_id": ("token", None),
    "position": ("row", None),
    "mask_weight": ("row", None),
    "chunk_of_row": ("row", "chunk"),
    "steps": ("row", None),
    "extras": ("row", None),
    "log_tail": ("row temperature", None),
    "log_partition": ("row temperature", None),
    "extra_id": ("extra", None),
    "kept_row": ("entry", "row"),
    "kept_count": ("entry", None),
    "kept_id": ("kept", None),
    "kept_logprob": ("kept", None),
    "drawn_row": ("draw", "row"),
    "drawn_place": ("draw", None),
    "drawn_logprob": ("draw", None),
    "drawn_share": ("draw", None),
    "chunk_logprob": ("chunk", None),
    "chunk_log_tail": ("chunk temperature", None),
    "chunk_log_partition": ("chunk temperature", None),
    "candidate_chunk": ("candidate", "chunk"),
    "candidate_logprob": ("candidate", None),
    "token_candidate": ("candidate token", "candidate"),
    "token_row": ("candidate token", "row"),
    "token_place": ("candidate token", None),
}
"""The columns: their axis, and what their numbers count, if these count something. Places are those of
`gather_places`; `chunk_of_row` is -1 where there is none; `steps` is absent where the views have no steps."""


@dataclass(frozen=True)
class SourceLaw:
    """What a source's views mean to the student; with the views it determines the table.

    Attributes:
        shared_vocab_size: Teacher ids from here on mean something else to the student, and count as rest.
        own: Temperatures of the source.
        temperatures: Those of the batches.
        schedule: Mask schedule of the views.
        complementary: Whether views come in pairs.
    """

    shared_vocab_size: int
    own: Temperatures
    temperatures: Temperatures
    schedule: Schedule
    complementary: bool

    def of_view(self, number: int) -> ViewLaw:
        """Return how the mask of a view came about."""
        return ViewLaw(self.schedule, is_complement(number, self.complementary))


ReadyColumn = Ragged | Array
ReadyColumns = Mapping[str, ReadyColumn]


class ReadyViews:
    """A table of views; its columns may be mapped from a file, and log-probs be float16 there."""

    def __init__(self, columns: ReadyColumns):
        """Take the columns that `READY` names."""
        self.columns = columns
        self.values = {
            name: column.values if isinstance(column, Ragged) else column for name, column in columns.items()
        }

    def __len__(self) -> int:
        return len(self.values["t"])

    @cached_property
    def starts(self) -> dict[ReadyAxis, list[int]]:
        """Of each axis, where each view's part begins, and where the last ends."""
        starts: dict[ReadyAxis, list[int]] = {"view": list(range(len(self) + 1))}
        for name, column in self.columns.items():
            if (axis := READY[name][0]) not in starts:
                assert isinstance(column, Ragged)
                starts[axis] = column.offsets.tolist()
        return starts

    def length(self, number: int) -> int:
        """Return the tokens of a view."""
        starts = self.starts["token"]
        return starts[number + 1] - starts[number]

    def all(self) -> list["ReadyView"]:
        """Return all of its views, in order."""
        return [ReadyView(self, number) for number in range(len(self))]


class ReadyView(NamedTuple):
    """One view of a table: nothing of it is copied before a batch takes it."""

    table: ReadyViews
    number: int

    @property
    def length(self) -> int:
        """Tokens of the view."""
        return self.table.length(self.number)


def make_ready(joined: JoinedViews, law: SourceLaw, has_kept_candidates: bool = False) -> ReadyViews:
    """Return the table of some views.

    Args:
        joined: Views of one source.
        law: Of the source.
        has_kept_candidates: Whether kept ids of `topk` are the candidates of chunks, which were not captured.
    """
    row_start_B = joined.rows_before_L[joined.token_start_B]
    num_rows, num_T = int(row_start_B[-1]), len(law.temperatures)
    active = ActiveChunks.of(joined)
    shared = told_topk(joined, active, law.shared_vocab_size, law.temperatures)
    topk = None if shared is None else shared.topk
    drawn = drawn_of(shared)
    if has_kept_candidates and topk is not None:
        found = kept_as_candidates(topk, active, num_rows)
    else:
        found = candidates_of(None if joined.signal is None else joined.signal.chunks, active, num_T)
    wanted_row_W = np.concatenate([drawn.row_D, found.token_row_F])
    wanted_id_W = np.concatenate([drawn.id_D, found.token_id_F])
    place_W, extras_N, extra_ids = gather_places(num_rows, topk, wanted_row_W, wanted_id_W)
    log_tail_NT, log_partition_NT = np.zeros((2, num_rows, num_T), np.float32)
    nothing, no_values = np.zeros(0, np.int32), np.zeros(0, np.float32)
    if topk is not None:
        log_tail_NT[topk.rows_R], log_partition_NT[topk.rows_R] = topk.log_tail_RT, topk.log_partition_RT
    rows_R, counts_R = (nothing, nothing) if topk is None else (topk.rows_R, topk.counts_R)

    # Where the parts of each view begin, axis by axis; what counts through all views counts within each afterwards.
    chunk_start_B = np.searchsorted(active.first_row_A, row_start_B)
    entry_start_B = np.searchsorted(rows_R, row_start_B)
    draw_start_B = np.searchsorted(drawn.row_D, row_start_B)
    candidate_start_B = np.searchsorted(found.chunk_J, chunk_start_B)
    token_start_B = np.searchsorted(found.token_candidate_F, candidate_start_B)
    starts: dict[ReadyAxis, Int64s] = {
        "token": joined.token_start_B,
        "row": row_start_B,
        "row temperature": row_start_B * num_T,
        "extra": sums_before(extras_N)[row_start_B],
        "entry": entry_start_B,
        "kept": sums_before(counts_R)[entry_start_B],
        "draw": draw_start_B,
        "chunk": chunk_start_B,
        "chunk temperature": chunk_start_B * num_T,
        "candidate": candidate_start_B,
        "candidate token": token_start_B,
    }
    columns: dict[str, Array] = {
        "student_id": joined.student_ids_L,
        "position": _positions(joined),
        "mask_weight": _mask_weights(joined, law).astype(np.float32),
        "chunk_of_row": active.chunk_of_row(num_rows),
        "extras": extras_N.astype(np.int32),
        "log_tail": log_tail_NT.reshape(-1),
        "log_partition": log_partition_NT.reshape(-1),
        "extra_id": extra_ids.astype(np.uint32),
        "kept_row": rows_R,
        "kept_count": counts_R,
        "kept_id": nothing.astype(np.uint32) if topk is None else topk.ids_E,
        "kept_logprob": no_values if topk is None else topk.logprobs_E,
        "drawn_row": drawn.row_D,
        "drawn_place": place_W[: len(drawn.row_D)].astype(np.int32),
        "drawn_logprob": drawn.logprob_D,
        "drawn_share": drawn.share_D,
        "chunk_logprob": active.teacher_logprobs(joined).astype(np.float32),
        "chunk_log_tail": found.log_tail_CT.reshape(-1),
        "chunk_log_partition": found.log_partition_CT.reshape(-1),
        "candidate_chunk": found.chunk_J,
        "candidate_logprob": found.logprob_J,
        "token_candidate": found.token_candidate_F,
        "token_row": found.token_row_F,
        "token_place": place_W[len(drawn.row_D) :].astype(np.int32),
    }
    if joined.signal is not None and joined.signal.steps_to_reveal_N is not None:
        columns["steps"] = joined.signal.steps_to_reveal_N
    return ReadyViews(_of_views(joined, law) | _within(columns, starts))


def _within(columns: Mapping[str, Array], starts: Mapping[ReadyAxis, Int64s]) -> dict[str, ReadyColumn]:
    """Cut columns by view; numbers of rows, chunks and candidates then count within the view."""
    result: dict[str, ReadyColumn] = {}
    for name, values in columns.items():
        axis, counted = READY[name]
        if counted is not None:
            shift = np.repeat(starts[counted][:-1], np.diff(starts[axis]))
            values = np.where(values < 0, -1, values - shift).astype(np.int32)
        result[name] = Ragged(starts[axis].astype(np.int32), values)
    return result


def _of_views(joined: JoinedViews, law: SourceLaw) -> dict[str, ReadyColumn]:
    laws = [law.of_view(number) for number in joined.number_B.tolist()]
    weight_B = [
        time_weight(t, of_view.schedule, of_view.is_complement)
        for t, of_view in zip(joined.t_B.tolist(), laws, strict=True)
    ]
    return {
        "t": joined.t_B.astype(np.float32),
        "time_weight": np.array(weight_B, np.float32),
        "num_supervised": np.diff(sums_before(joined.is_supervised_L)[joined.token_start_B]),
    }


def _positions(joined: JoinedViews) -> Ints:
    """Return the place of each masked token in its view."""
    token_N = np.flatnonzero(joined.is_student_masked_L)
    rows_B = np.diff(joined.rows_before_L[joined.token_start_B])
    result: Ints = (token_N - np.repeat(joined.token_start_B[:-1], rows_B)).astype(np.int32)
    return result


def _mask_weights(joined: JoinedViews, law: SourceLaw) -> Array:
    """Return each masked row's weight; chunks matter without a teacher too: they decide what is masked together."""
    view_L = np.repeat(np.arange(len(joined.t_B)), np.diff(joined.token_start_B))
    unit_L = unit_sizes(joined.is_supervised_L, joined.chunks_C4[:, 2:])
    laws = [law.of_view(number) for number in joined.number_B.tolist()]
    return denoising_weights(unit_L, joined.is_student_masked_L, view_L, laws)
