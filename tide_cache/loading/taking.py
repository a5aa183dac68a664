"""The views of a batch, taken out of the tables that hold them: each column end to end, its numbers counting through.

Shape suffixes as in `tide_cache.records`; B views.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s, sums_before
from tide_cache.loading.ready_views import READY, ReadyAxis, ReadyView
from tide_cache.shards import Array


class TakenViews:
    """Columns of `READY` for some views, of one table or several."""

    def __init__(self, views: Sequence[ReadyView]):
        """Take views, at least one; nothing is copied yet."""
        self._views = views
        self._spans: dict[ReadyAxis, list[slice]] = {}
        self._start_B: dict[ReadyAxis, Int64s] = {}

    def spans(self, axis: ReadyAxis) -> list[slice]:
        """Return where the part of each view lies in its table."""
        if axis not in self._spans:
            starts = [(table.starts[axis], number) for table, number in self._views]
            self._spans[axis] = [slice(of_table[number], of_table[number + 1]) for of_table, number in starts]
        return self._spans[axis]

    def start_B(self, axis: ReadyAxis) -> Int64s:
        """Return where the part of each view begins here, and the end of all."""
        if axis not in self._start_B:
            self._start_B[axis] = sums_before([span.stop - span.start for span in self.spans(axis)])
        return self._start_B[axis]

    def count(self, axis: ReadyAxis) -> int:
        """Return the values of all views on an axis."""
        return int(self.start_B(axis)[-1])

    def parts(self, name: str) -> list[Array]:
        """Return a column view by view; its numbers count within the view."""
        spans = self.spans(READY[name][0])
        return [table.values[name][span] for (table, _), span in zip(self._views, spans, strict=True)]

    def has(self, name: str) -> bool:
        """Tell whether all views have a column."""
        return all(name in table.values for table, _ in self._views)

    def column(self, name: str, dtype: npt.DTypeLike) -> Array:
        """Return a column of all views in another type; its numbers count through all of them.

        Args:
            name: Of the column.
            dtype: Holds its values, or is what the batch wants.
        """
        axis, counted = READY[name]
        values = np.empty(self.count(axis), dtype)
        if len(values):
            np.concatenate(self.parts(name), out=values, casting="same_kind")
        if counted is not None and len(values):
            shift = self.spread(self.start_B(counted)[:-1], axis)
            values = np.where(values < 0, -1, values + shift) if name == "chunk_of_row" else values + shift
        return values

    def spread(self, values_B: Array, axis: ReadyAxis) -> Array:
        """Repeat one value of each view for all its values on an axis."""
        result: Array = np.repeat(values_B, np.diff(self.start_B(axis)))
        return result
