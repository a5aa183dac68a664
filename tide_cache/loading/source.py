"""Where view records come from: a cache, a live teacher, or a plain corpus; training cannot tell the difference."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from tide_cache.config.sections import ViewsConfig
from tide_cache.loading.groups import Groups
from tide_cache.records import SamplePair, ViewRecord
from tide_cache.teacher.capture import Teacher
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.views.masking import draw_view


class TeacherSource(Protocol):
    """Samples in groups, each with masked views and what the teacher says about them."""

    @property
    def groups(self) -> Groups:
        """Where its groups lie, in storage order."""

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return this epoch's view of each of the samples, in the given order."""


class PlainSource:
    """A corpus without a teacher: every epoch draws new masks, and records have no signal."""

    def __init__(self, pairs: Sequence[SamplePair], views: ViewsConfig):
        self._pairs, self._views = pairs, views

    @property
    def groups(self) -> Groups:
        """One group: everything is in memory."""
        return Groups.of_sizes([len(self._pairs)])

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Draw view number `epoch` of each sample."""
        pairs = [self._pairs[sample] for sample in samples]
        return [ViewRecord(pair, draw_view(pair, epoch, self._views), None) for pair in pairs]


class LiveTeacher:
    """A live teacher next to the student: says what a cache of the same views says, at the cost of a forward."""

    def __init__(
        self,
        pairs: Sequence[SamplePair],
        views: ViewsConfig,
        teacher: Teacher,
        fresh_masks: bool = False,
        demo_ratio: float | None = None,
    ):
        """Wrap a live teacher.

        Args:
            pairs: The samples.
            views: How to mask them.
            teacher: With its weights loaded.
            fresh_masks: Draw new views in every epoch, instead of repeating the first `num_views`.
            demo_ratio: Ask as the `compdemo` pass does, with this probability of showing a chunk first.
        """
        self._pairs, self._views, self._teacher, self._fresh_masks = pairs, views, teacher, fresh_masks
        self._demo_ratio = demo_ratio

    @property
    def groups(self) -> Groups:
        """One group: everything is in memory."""
        return Groups.of_sizes([len(self._pairs)])

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Draw view `epoch mod num_views` of each sample (view `epoch` with fresh masks), and ask the teacher."""
        number = epoch if self._fresh_masks else epoch % self._views.num_views
        pairs = [self._pairs[sample] for sample in samples]
        views = [draw_view(pair, number, self._views) for pair in pairs]
        of_samples = [[view] for view in views]
        if self._demo_ratio is None:
            signals = self._teacher.signals(pairs, of_samples)
        else:
            signals = compdemo_signals(self._teacher, pairs, of_samples, self._views.seed, self._demo_ratio)
        return [ViewRecord(*record) for record in zip(pairs, views, (s for (s,) in signals), strict=True)]


class GroupCache:
    """Keeps the groups read last: lanes take turns, and each group is decoded once."""

    def __init__(self, read: Callable[[int, int], list[ViewRecord]], capacity: int):
        self._read, self._capacity = read, capacity
        self._groups: OrderedDict[tuple[int, int], list[ViewRecord]] = OrderedDict()

    def get(self, group: int, view: int) -> list[ViewRecord]:
        """Return the records of one view of a group."""
        key = (group, view)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        records = self._groups[key] = self._read(group, view)
        if len(self._groups) > self._capacity:
            self._groups.popitem(last=False)
        return records
