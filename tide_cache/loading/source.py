"""Where view records come from: a cache, a live teacher, or a plain corpus; training cannot tell the difference."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from tide_cache.config.sections import ViewsConfig
from tide_cache.loading.collate import BatchLayout, ready_records
from tide_cache.loading.groups import Groups
from tide_cache.loading.ready_views import ReadyView
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

    def ready(self, samples: Sequence[int], epoch: int, layout: BatchLayout, source: int = 0) -> list[ReadyView]:
        """Return the same views, ready for batches.

        Args:
            samples: Numbers of the samples.
            epoch: Number of the epoch.
            layout: Of the batches.
            source: Place of this source in a mix.
        """


class RecordSource(ABC):
    """A source whose views are records, made one by one."""

    @property
    @abstractmethod
    def groups(self) -> Groups:
        """Where its groups lie, in storage order."""

    @abstractmethod
    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return this epoch's view of each of the samples, in the given order."""

    def ready(self, samples: Sequence[int], epoch: int, layout: BatchLayout, source: int = 0) -> list[ReadyView]:
        """Return the same views, ready for batches; arguments as in `TeacherSource`."""
        records = self.records(samples, epoch)
        return ready_records([replace(one, source=source) for one in records] if source else records, layout)


class PlainSource(RecordSource):
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


class LiveTeacher(RecordSource):
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


Key = TypeVar("Key", bound=Hashable)
Held = TypeVar("Held")


class GroupCache(Generic[Key, Held]):
    """Keeps the groups read last: lanes take turns, and each group is decoded once."""

    def __init__(self, read: Callable[[Key], Held], capacity: int):
        self._read, self._capacity = read, capacity
        self._groups: OrderedDict[Key, Held] = OrderedDict()

    def get(self, key: Key) -> Held:
        """Return what was read of a group."""
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        group = self._groups[key] = self._read(key)
        if len(self._groups) > self._capacity:
            self._groups.popitem(last=False)
        return group
