"""The cache as a source of view records: row groups are decoded when the order reaches them."""

from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from typing import get_args

import numpy as np

from tide_cache.config.sections import BuildViewsConfig
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.groups import Groups
from tide_cache.loading.hot_cache import HotCache
from tide_cache.loading.joining import join_columns, join_views
from tide_cache.loading.ready_views import ReadyColumns, ReadyView, ReadyViews, SourceLaw, make_ready
from tide_cache.loading.shared_views import cut_view
from tide_cache.loading.source import GroupCache
from tide_cache.locations import CachePath
from tide_cache.manifest import CacheIdentity, Manifest
from tide_cache.records import ViewRecord
from tide_cache.shards import (
    SAMPLES_PER_GROUP,
    Columns,
    PassName,
    SignalKind,
    columns_to_pairs,
    columns_to_views,
    rows_of,
)
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
        has_kept_candidates: bool = False,
    ):
        """Open a cache; no shard is read yet.

        Args:
            root: Folder of the cache.
            manifest: Its manifest.
            num_views: Use only the first so many views of each sample.
            held_groups: Row groups kept decoded; at least one for each lane that is read.
            signal_pass: Which of the cache's passes to read; by default its first.
            signals: Which signals to decode, by default all; `truth` is always decoded.
            hot: Where row groups that are ready for batches are kept on a local disk, if anywhere.
            has_kept_candidates: Whether the kept ids of rows are the candidates of chunks too; see
                `chunks_are_kept_ids`.
        """
        self._hot = hot
        self._num_views = num_views or manifest.identity.views.num_views
        self._is_shared = manifest.identity.is_shared
        self._views = BuildViewsConfig(**dict(manifest.identity.views))
        self._temperatures = manifest.identity.signals.temperatures
        self._pass, self._signals = signal_pass or manifest.passes[0], signals
        if has_kept_candidates and signals is not None:
            self._signals = {*signals, "topk"}
        self._has_kept_candidates = has_kept_candidates
        self.groups = Groups.of_runs(manifest.num_samples, SAMPLES_PER_GROUP)
        self._held = GroupCache(self._read, held_groups)
        self._held_ready = GroupCache(self._read_ready, held_groups)
        self._reader = lru_cache(MOST_READERS)(partial(manifest.reader, root))  # a reader checks its footer once

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return view `epoch mod num_views` of each of the samples; a shared view is cut to the one drawn here."""
        view = epoch % self._num_views
        groups, within = self.groups.of_samples(np.asarray(samples, np.int64))
        return [self._record(group, place, view) for group, place in zip(groups.tolist(), within.tolist(), strict=True)]

    def ready(self, samples: Sequence[int], epoch: int, layout: BatchLayout, source: int = 0) -> list[ReadyView]:
        """Return the same views, ready for batches."""
        view, law = epoch % self._num_views, layout.law(source)
        groups, within = self.groups.of_samples(np.asarray(samples, np.int64))
        tables = {group: self._held_ready.get((group, view, law)) for group in dict.fromkeys(groups.tolist())}
        return [ReadyView(tables[group], place) for group, place in zip(groups.tolist(), within.tolist(), strict=True)]

    def _record(self, group: int, place: int, view: int) -> ViewRecord:
        """Return a view of a sample, cut out of its group."""
        pairs, signals = self._held.get((group, 0 if self._is_shared else view))
        ((pair,), columns) = columns_to_pairs(rows_of(pairs, place)), rows_of(signals, place)
        (record,) = columns_to_views(columns, [pair], len(self._temperatures))
        return cut_view(record, draw_view(pair, view, self._views)) if self._is_shared else record

    def _read(self, key: tuple[int, int]) -> tuple[Columns, Columns]:
        """Read the samples of a group, and one stored view of each."""
        group, view = key
        shard, group_of_shard = self._place(group)
        pairs = self._reader("pairs", shard).pair_columns(group_of_shard)
        reader = self._reader(self._pass, shard)
        return pairs, reader.signal_columns(view, group_of_shard, columns_to_pairs(pairs), signals=self._signals)

    def _read_ready(self, key: tuple[int, int, SourceLaw]) -> ReadyViews:
        group, view, law = key
        if self._hot is None:
            return ReadyViews(self._make_ready(group, view, law))
        shard, group_of_shard = self._place(group)
        content = " ".join(self._reader(table, shard).content for table in ("pairs", self._pass))
        signals = "all" if self._signals is None else " ".join(sorted(self._signals))
        name = f"{content} {group_of_shard} {view} {signals} {law} {self._has_kept_candidates}"
        return ReadyViews(self._hot.get(name, lambda: self._make_ready(group, view, law)))

    def _make_ready(self, group: int, view: int, law: SourceLaw) -> ReadyColumns:
        if self._is_shared:  # each sample has a cut of its own
            start, end = self.groups.spans(np.array([group]))
            records = [self._record(group, place, view) for place in range(int(end[0] - start[0]))]
            joined = join_views(records, law.own, law.temperatures)
        else:
            joined = join_columns(*self._read((group, view)), law.own, law.temperatures)
        return make_ready(joined, law, self._has_kept_candidates).columns

    def _place(self, group: int) -> tuple[int, int]:
        """Return the shard of a group, and its number there."""
        (shard,), (group_of_shard,) = self.groups.places(np.array([group]))
        return int(shard), int(group_of_shard)


def chunks_are_kept_ids(identity: CacheIdentity) -> bool:
    """Tell whether kept ids serve as `chunks`: with one tokenizer on both sides a chunk is a token."""
    kinds, is_one = identity.signals.kinds, identity.pairing.shared_vocab_size >= identity.vocab_sizes.student
    return is_one and "topk" in kinds and "chunks" not in kinds


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
