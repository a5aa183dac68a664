"""Opening caches for training: their records, their order and how they become batches."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tide_cache.config.train import DataConfig
from tide_cache.errors import CacheMismatchError, TideCacheError, fault_list
from tide_cache.loading.cache import HELD_GROUPS, CacheSource, cache_layout, chunks_are_kept_ids, kinds_to_read
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.groups import Groups
from tide_cache.loading.hot_cache import HotCache
from tide_cache.loading.mix import MixedOrder, MixedSource, mixed_layout
from tide_cache.loading.order import LaneOrder, Order
from tide_cache.loading.source import TeacherSource
from tide_cache.loading.window_order import WindowOrder
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.shards import PassName


@dataclass(frozen=True, eq=False)
class OpenedCache:
    """A cache of a run, and how the run uses it.

    Attributes:
        root: Folder or URL.
        manifest: Its manifest.
        signal_pass: The pass that the teacher's signals come from.
        num_views: Use only the first so many views of each sample; None for all.
        weight: Its share of the turns, relative to the other caches'.
        key: Its key in the run file.
        where: Prefix of each message about it; empty when it is the only one.
    """

    root: CachePath
    manifest: Manifest
    signal_pass: PassName
    num_views: int | None = None
    weight: float = 1.0
    key: str = "cache"
    where: str = ""

    @property
    def cache_id(self) -> str:
        """The cache's identity in 16 hex digits."""
        return self.manifest.identity.cache_id

    @property
    def signals(self) -> frozenset[str]:
        """Signals that reach the student, as objectives name them.

        `topk` concerns equal tokens, and the tokenizers may share none; `projected` replaces it. With one tokenizer
        `topk` serves for `chunks` too.
        """
        kinds: set[str] = {*self.manifest.identity.signals.kinds}
        if self._has_kept_candidates:
            kinds |= {"chunks"}
        if not self.manifest.identity.pairing.shared_vocab_size:
            kinds -= {"topk"}
        return frozenset(kinds | {"topk"} if "projected" in kinds else kinds)

    @property
    def _has_kept_candidates(self) -> bool:
        """In a mix each cache has its own objectives, and none learns the same from two of them."""
        return not self.where and chunks_are_kept_ids(self.manifest.identity)

    def use(self) -> dict[str, object]:
        """Describe the cache and its use, for checkpoints and the final model."""
        return {
            "id": self.cache_id,
            "weight": self.weight,
            "signal_pass": self.signal_pass,
            "num_views": self.num_views,
        }

    def source(
        self, signals: Collection[str], views_per_step: int, lanes_read: int | None = None, hot: HotCache | None = None
    ) -> CacheSource:
        """Open the cache's records; no shard is read yet.

        Args:
            signals: Signals that the objectives need.
            views_per_step: Views of a sample that share a forward.
            lanes_read: Lanes of the order that this process reads; None for the order without lanes.
            hot: Where decoded row groups are kept on a local disk, if anywhere.
        """
        return CacheSource(
            self.root,
            self.manifest,
            self.num_views,
            (lanes_read or HELD_GROUPS) * views_per_step,  # each view of a group is kept separately
            signal_pass=self.signal_pass,
            signals=kinds_to_read(signals),
            hot=hot,
            has_kept_candidates="chunks" in signals and self._has_kept_candidates,
        )

    def layout(self, tokenizer: TextTokenizer) -> BatchLayout:
        """Return how the cache's records become batches of a student with this tokenizer."""
        block_size = self.manifest.identity.student.block_size
        return cache_layout(self.manifest, tokenizer.mask_id, tokenizer.pad_id, block_size)


@dataclass(frozen=True, eq=False)
class OpenedData:
    """What a run trains on.

    Attributes:
        source: Where records come from.
        layout: How they become batches.
        key: Name of the data; the order is keyed by it.
        order: The order in which samples are visited.
        remarks: What was left out, and why.
    """

    source: TeacherSource
    layout: BatchLayout
    key: str
    order: Order
    remarks: tuple[str, ...] = ()


def open_caches(data: DataConfig) -> tuple[OpenedCache, ...]:
    """Read the manifests of a run's caches; none for a corpus.

    Args:
        data: Section `data` of the run file.

    Raises:
        TideCacheError: As `Manifest.load`; lists what is wrong with each cache.
    """
    opened: list[OpenedCache] = []
    errors: list[TideCacheError] = []
    for number, entry in enumerate(data.caches):
        key, where = ("data", "") if data.mix is None else (f"data.mix.{number}", f"data.mix.{number}, {entry.cache}: ")
        try:
            manifest = Manifest.load(entry.cache)
        except TideCacheError as error:
            errors.append(error)
        else:
            use = entry.signal_pass, entry.num_views, entry.weight
            opened.append(OpenedCache(entry.cache, manifest, *use, key, where))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CacheMismatchError(fault_list("Caches of data.mix cannot be read:", map(str, errors)))
    return tuple(opened)


def make_order(groups: Groups, key: str, seed: int, lanes: int | None) -> LaneOrder | WindowOrder:
    """Return the order of one source; without lanes that of runs that began before there were any."""
    return WindowOrder(groups.sizes(), key, seed) if lanes is None else LaneOrder(groups, key, seed, lanes)


def lanes_fault(world_name: str, world: int, lanes_name: str, lanes: int) -> str | None:
    """Say that ranks cannot share the lanes of an order, if they cannot, and how many could.

    Args:
        world_name: What the caller calls the number of processes.
        world: That number.
        lanes_name: What the caller calls the number of lanes.
        lanes: That number.
    """
    if lanes >= 1 and lanes % world == 0:
        return None
    allowed = ", ".join(str(number) for number in range(1, lanes + 1) if lanes % number == 0)
    return (
        f"{world_name}: found {world}, expected a divisor of {lanes_name} = {lanes}, since each process reads whole "
        f"lanes of the order; use {allowed}, or begin a run with {lanes_name} = {-(-max(lanes, 1) // world) * world}"
    )


@dataclass(frozen=True)
class OrderSettings:
    """What the order of a run depends on, besides its data.

    Attributes:
        seed: Seed of the order.
        lanes: Number of lanes; None for the order before there were lanes.
        lanes_read: How many of them this process reads.
    """

    seed: int
    lanes: int | None
    lanes_read: int | None


def open_data(
    caches: Sequence[OpenedCache],
    tokenizer: TextTokenizer,
    signals: Collection[str],
    views_per_step: int,
    settings: OrderSettings,
    hot: HotCache | None = None,
) -> OpenedData:
    """Open one cache, or several in turns; they must fit the run.

    Args:
        caches: The caches of the run, one or several.
        tokenizer: The student's.
        signals: Signals that the objectives need.
        views_per_step: Views of a sample that share a forward.
        settings: Of the order.
        hot: Where decoded row groups are kept on a local disk, if anywhere.
    """
    sources = [cache.source(signals, views_per_step, settings.lanes_read, hot) for cache in caches]
    layouts = [cache.layout(tokenizer) for cache in caches]
    orders = [
        make_order(source.groups, cache.cache_id, settings.seed, settings.lanes)
        for source, cache in zip(sources, caches, strict=True)
    ]
    key = "+".join(cache.cache_id for cache in caches)
    if not caches[0].where:
        return OpenedData(sources[0], layouts[0], key, orders[0])
    order = MixedOrder(orders, [cache.weight for cache in caches], settings.seed)
    return OpenedData(MixedSource(sources), mixed_layout(layouts), key, order)
