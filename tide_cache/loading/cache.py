"""The cache as a source of view records: row groups are decoded when the order reaches them."""

from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from typing import get_args

import numpy as np

from tide_cache.config.sections import BuildViewsConfig
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.groups import Groups
from tide_cache.loading.hot_cache import HotCache
from tide_cache.loading.shared_views import cut_view
from tide_cache.loading.source import GroupCache
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.records import ViewRecord
from tide_cache.shards import SAMPLES_PER_GROUP, PassName, SignalKind
from tide_cache.views import draw_view

HELD_GROUPS = 32
"""Row groups kept decoded by default, and for each view of a step in the order without lanes: twice its window."""


MOST_READERS = 1024
"""Shards of both tables whose footers are kept: so many are read once, however the order goes through them."""


class CacheSource:
    """A `TeacherSource` over a complete cache."""

    def __init__(
        self,
        root: CachePath,
        manifest: Manifest,
        num_views: int | None = None,
        held_groups: int = HELD_GROUPS,
        signal_pass: PassName | None = None,
        signals: Collection[SignalKind] | None = None,
        hot: HotCache | None = None,
    ):
        """Open a cache; no shard is read yet.

        Args:
            root: Folder of the cache.
            manifest: Its manifest.
            num_views: Use only the first so many views of each sample.
            held_groups: Row groups kept decoded; at least one for each lane that is read.
            signal_pass: Which of the cache's passes to read; by default its first.
            signals: Which signals to decode, by default all; `truth` is always decoded.
            hot: Where decoded row groups are kept on a local disk, if anywhere.
        """
        self._hot = hot
        self._num_views = num_views or manifest.identity.views.num_views
        self._is_shared = manifest.identity.is_shared
        self._views = BuildViewsConfig(**dict(manifest.identity.views))
        self._pass, self._signals = signal_pass or manifest.passes[0], signals
        self.groups = Groups.of_runs(manifest.num_samples, SAMPLES_PER_GROUP)
        self._held = GroupCache(self._read, held_groups)
        self._reader = lru_cache(MOST_READERS)(partial(manifest.reader, root))  # a reader checks its footer once

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return view `epoch mod num_views` of each of the samples; a shared view is cut to the one drawn here."""
        view = epoch % self._num_views
        stored = 0 if self._is_shared else view
        groups, within = self.groups.of_samples(np.asarray(samples, np.int64))
        records = [
            self._held.get(group, stored)[place] for group, place in zip(groups.tolist(), within.tolist(), strict=True)
        ]
        if self._is_shared:
            return [cut_view(record, draw_view(record.pair, view, self._views)) for record in records]
        return records

    def _read(self, group: int, view: int) -> list[ViewRecord]:
        shard, group_of_shard = (int(place[0]) for place in self.groups.places(np.array([group])))
        pairs = self._reader("pairs", shard).read_pairs(group_of_shard, self._hot)
        return self._reader(self._pass, shard).read_signals(
            view, group_of_shard, pairs, signals=self._signals, store=self._hot
        )


def kinds_to_read(needed: Collection[str]) -> list[SignalKind]:
    """Return the cache's signals that serve the needs of objectives, in the cache's order."""
    served = {*needed, "projected"} if "topk" in needed else {*needed}
    return [kind for kind in get_args(SignalKind) if kind in served]


def cache_layout(manifest: Manifest, mask_id: int, pad_id: int, block_size: int) -> BatchLayout:
    """Return the layout that turns a cache's records into batches.

    Args:
        manifest: The cache's manifest.
        mask_id: The student's mask token.
        pad_id: The student's padding token.
        block_size: Tokens per block in training.
    """
    identity = manifest.identity
    return BatchLayout(
        mask_id=mask_id,
        pad_id=pad_id,
        block_size=block_size,
        shared_vocab_size=identity.pairing.shared_vocab_size,
        temperatures=identity.signals.temperatures,
        schedule=identity.views.schedule,
        complementary=identity.views.complementary,
    )
