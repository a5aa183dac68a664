"""Records to columns and back: inverses of each other, up to the declared rounding of log-probs.

Pure: only numpy and the records. Columns become arrays through their offsets; the only Python loops go over the rows
of a row group, at most 64, and over the fields of `signal_table`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import sums_before
from tide_cache.config.settings import LogprobDtype
from tide_cache.records import Bools, Int32s, MaskedView, SampleId, SamplePair, TeacherSignal, ViewRecord
from tide_cache.shards.columns import Column, Columns, Ragged, names_of, ragged, scalars
from tide_cache.shards.lists import round_to_half
from tide_cache.signal_table import PARTS, from_columns, to_columns

Integers = npt.NDArray[np.integer[Any]]


def pairs_to_columns(indexes: Sequence[int], pairs: Sequence[SamplePair]) -> dict[str, Column]:
    """Return the columns of the samples of one row group.

    Args:
        indexes: Each sample's number in the corpus.
        pairs: The samples, in the same order.
    """
    return {
        "sample_index": np.asarray(indexes, np.int64),
        "sample_id": [pair.sample_id for pair in pairs],
        "student_ids": Ragged.of([pair.student_ids_L for pair in pairs], np.int32),
        "is_supervised": Ragged.of([pair.is_supervised_L for pair in pairs], np.bool_),
        "teacher_ids": Ragged.of([pair.teacher_ids_M for pair in pairs], np.int32),
        "chunks": Ragged.of([pair.chunks_C4.reshape(-1) for pair in pairs], np.int32),
    }


def columns_to_pairs(columns: Columns) -> list[SamplePair]:
    """Return the samples of one row group; their arrays are read-only views."""
    names = ("student_ids", "is_supervised", "teacher_ids", "chunks")
    student_ids, is_supervised, teacher_ids, chunks = (ragged(columns, name).lists() for name in names)
    return [
        SamplePair(SampleId(name), student_ids[row], is_supervised[row], teacher_ids[row], chunks[row].reshape(-1, 4))
        for row, name in enumerate(names_of(columns))
    ]


def signals_to_columns(
    indexes: Sequence[int], records: Sequence[ViewRecord], logprob_dtype: LogprobDtype
) -> dict[str, Column]:
    """Return the columns of one view of the samples of one row group.

    Args:
        indexes: Each sample's number in the corpus.
        records: Their views with signals, in the same order; an optional part is in all of them, or in none.
        logprob_dtype: `float16` rounds the kept log-probs to float16; `truth` is never rounded.
    """
    views = [record.view for record in records]
    said = [to_columns(record.signal) for record in records if record.signal is not None]
    assert len(said) == len(records), "a row without a signal"
    assert all(arrays.keys() == said[0].keys() for arrays in said), "an optional signal in some rows only"
    columns: dict[str, Column] = {
        "sample_index": np.asarray(indexes, np.int64),
        "sample_id": [view.sample_id for view in views],
        "view": np.asarray([view.view for view in views], np.int32),
        "t": np.asarray([view.t for view in views], np.float64),
        "student_masked": Ragged.of([_positions(view.is_student_masked_L) for view in views], np.int32),
        "teacher_masked": Ragged.of([_positions(view.is_teacher_masked_M) for view in views], np.int32),
    }
    for field in (field for part in PARTS for field in part.fields if field.column in said[0]):
        columns[field.column] = lists = Ragged.of([arrays[field.column] for arrays in said], field.dtype)
        if field.rule == "rounded logprob" and logprob_dtype == "float16":
            round_to_half(lists.values)  # an overflow becomes -inf, which the value checks refuse
    return columns


def columns_to_views(columns: Columns, pairs: Sequence[SamplePair], num_temperatures: int) -> list[ViewRecord]:
    """Return one view of the samples of one row group; arrays other than masks are read-only views.

    Args:
        columns: Checked columns; positions are inside their sample.
        pairs: The samples of the same group, in order; they give the lengths of the masks.
        num_temperatures: Number of temperatures of tails and partitions.
    """
    student_masks = masks_of(ragged(columns, "student_masked"), [len(pair.student_ids_L) for pair in pairs]).lists()
    teacher_masks = masks_of(ragged(columns, "teacher_masked"), [len(pair.teacher_ids_M) for pair in pairs]).lists()
    numbers, times = scalars(columns, "view").tolist(), scalars(columns, "t").tolist()
    names = [field.column for part in PARTS for field in part.fields if field.column in columns]
    lists = {name: ragged(columns, name).lists() for name in names}
    return [
        ViewRecord(
            pair=pair,
            view=MaskedView(pair.sample_id, numbers[row], times[row], student_masks[row], teacher_masks[row]),
            signal=from_columns(TeacherSignal, {name: column[row] for name, column in lists.items()}, num_temperatures),
        )
        for row, pair in enumerate(pairs)
    ]


def masks_of(positions: Ragged, lengths: Sequence[int] | Integers) -> Ragged:
    """Return boolean masks of the given lengths for lists of positions."""
    offsets = sums_before(lengths).astype(np.int32)
    is_masked: Bools = np.zeros(offsets[-1], np.bool_)
    is_masked[np.repeat(offsets[:-1], positions.lengths) + positions.values] = True
    return Ragged(offsets, is_masked)


_MIX = np.uint64(0x9E3779B97F4A7C15)


def repeats_of_candidates(ids_F: Integers, sizes_J: Integers, owner_J: Integers) -> Bools:
    """Mark the candidates [J] whose ids are those of an earlier candidate of the same chunk.

    Args:
        ids_F: Ids of all candidates, end to end.
        sizes_J: Number of ids of each.
        owner_J: Chunk of each.
    """
    starts_J = sums_before(sizes_J)[:-1]
    key_J = owner_J.astype(np.uint64)
    for place in range(int(sizes_J.max(initial=0))):
        has_J = sizes_J > place
        if has_J.all():
            key_J = key_J * _MIX + ids_F[starts_J + place].astype(np.uint64)
        else:
            key_J[has_J] = key_J[has_J] * _MIX + ids_F[starts_J[has_J] + place].astype(np.uint64)
    sorted_J = np.sort(key_J)
    twice = np.unique(sorted_J[1:][sorted_J[1:] == sorted_J[:-1]])
    is_repeated_J: Bools = np.zeros(len(sizes_J), np.bool_)
    if len(twice) == 0:
        return is_repeated_J
    # Equal candidates have equal keys; those with equal keys are compared.
    suspects_S = np.flatnonzero(np.isin(key_J, twice))
    table = np.full((len(suspects_S), 1 + int(sizes_J[suspects_S].max())), -1, np.int64)
    table[:, 0] = owner_J[suspects_S]
    for place in range(table.shape[1] - 1):
        has_S = sizes_J[suspects_S] > place
        table[has_S, 1 + place] = ids_F[starts_J[suspects_S[has_S]] + place]
    is_repeated_J[suspects_S] = True
    is_repeated_J[suspects_S[np.unique(table, axis=0, return_index=True)[1]]] = False
    return is_repeated_J


def _positions(is_masked: Bools) -> Int32s:
    return np.flatnonzero(is_masked).astype(np.int32)
