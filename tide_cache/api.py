"""A cache from Python: its records, PyTorch micro-batches, a `datasets.Dataset`, and its files for other programs.

All of it goes through the readers that training uses, with their checks: what is damaged or does not fit is refused.
Opening a cache takes its manifest alone, so what needs torch is imported where it is used.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tide_cache.config.presets import find_preset
from tide_cache.config.sections import BatchConfig
from tide_cache.config.settings import HOT_CACHE_GIB, LANES, Batching, Semantics
from tide_cache.config.train import read_objectives
from tide_cache.errors import RunFileError
from tide_cache.locations import CachePath, cache_path
from tide_cache.manifest import CacheIdentity, Manifest, Statistics, shard_path
from tide_cache.records import ViewRecord
from tide_cache.shards import PassName, TableName

if TYPE_CHECKING:
    from datasets import Dataset

    from tide_cache.loading.cache import CacheSource
    from tide_cache.loading.torch_dataset import MicroBatches
    from tide_cache.objectives import Objective


def open_cache(location: str | Path, *, signal_pass: PassName | None = None) -> "Cache":
    """Open a complete cache; check its manifest now, and its shards when their records are read.

    Args:
        location: Folder, or URL of an object store.
        signal_pass: Pass to read the teacher's signals from; by default the first.

    Raises:
        CacheIncompleteError: The build has not finished, or there is no cache.
        CacheMismatchError: It was written in a newer format.
        ShardCorruptError: Its manifest is damaged.
        RunFileError: The cache has no such pass.
    """
    root = cache_path(str(location))
    manifest = Manifest.load(root)
    return Cache(root, manifest, manifest.require_pass(root, signal_pass))


class Cache:
    """A complete cache: view records by number, all views of the first sample first.

    It can be pickled; the receiving process opens the files again.

    Attributes:
        root: Folder or URL.
        manifest: What it is made of.
        signal_pass: The pass that the teacher's signals come from.
    """

    def __init__(self, root: CachePath, manifest: Manifest, signal_pass: PassName):
        self.root, self.manifest, self.signal_pass = root, manifest, signal_pass

    def __repr__(self) -> str:
        return f"<Cache {self.cache_id} at {self.root}: {self.num_samples} samples x {self.num_views} views>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_source"}

    @property
    def identity(self) -> CacheIdentity:
        """Everything that determines its numbers."""
        return self.manifest.identity

    @property
    def cache_id(self) -> str:
        """The cache's identity in 16 hex digits."""
        return self.identity.cache_id

    @property
    def statistics(self) -> dict[TableName, Statistics]:
        """Counts of each table, summed over its shards, as `tide-cache inspect` shows them."""
        return self.manifest.totals

    @property
    def num_samples(self) -> int:
        """Number of samples; each has all views."""
        return int(self.statistics["pairs"]["samples"])

    @property
    def num_views(self) -> int:
        """Views of each sample."""
        return self.identity.views.num_views

    @property
    def block_size(self) -> int:
        """Tokens per diffusion block that the student is trained with."""
        return self.identity.student.block_size

    def __len__(self) -> int:
        """Number of views of all samples."""
        return self.num_samples * self.num_views

    def __iter__(self) -> Iterator[ViewRecord]:
        """Yield every view, all of the first sample first."""
        return (self.view(sample, view) for sample in range(self.num_samples) for view in range(self.num_views))

    def __getitem__(self, number: int) -> ViewRecord:
        """Return one view: view `number % num_views` of sample `number // num_views`."""
        counted = number + len(self) if number < 0 else number
        if not 0 <= counted < len(self):
            raise IndexError(f"{self.root}: found no view {number}; expected {-len(self)} to {len(self) - 1}")
        return self.view(*divmod(counted, self.num_views))

    def view(self, sample: int, view: int) -> ViewRecord:
        """Return one view of a sample; its decoded row group is kept for a while.

        Args:
            sample: Number of the sample, in storage order.
            view: Number of the view.

        Raises:
            IndexError: There is no such sample or view.
            ShardCorruptError: The shard is damaged.
        """
        if not (0 <= sample < self.num_samples and 0 <= view < self.num_views):
            raise IndexError(
                f"{self.root}: found no view {view} of sample {sample}; expected views 0 to {self.num_views - 1} of "
                f"samples 0 to {self.num_samples - 1}"
            )
        return self._source.records([sample], view)[0]

    @cached_property
    def _source(self) -> "CacheSource":
        from tide_cache.loading.cache import HELD_GROUPS, CacheSource

        held = max(HELD_GROUPS, self.num_views)  # so that iteration decodes each row group once
        return CacheSource(self.root, self.manifest, held_groups=held, signal_pass=self.signal_pass)

    def torch_dataset(
        self,
        student: str | Path,
        objectives: "Sequence[Objective]",
        *,
        steps: int,
        global_batch: int,
        micro_batch: int,
        first_step: int = 0,
        batching: Batching = BatchConfig.batching,
        row_tokens: int = BatchConfig.row_tokens,
        views_per_step: int = BatchConfig.views_per_step,
        num_views: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        lanes: int | None = LANES,
        hot_cache: str | Path | None = None,
        hot_cache_gib: float = HOT_CACHE_GIB,
    ) -> "MicroBatches":
        """Yield the micro-batches (StudentBatch, Targets) of `tide-cache train` with the same settings.

        Step e of an epoch shows the samples in the project's global order, view `epoch mod num_views` of each. Epochs
        follow each other without a gap: `steps = epochs * cache.num_samples // global_batch`.

        Args:
            student: The student's checkpoint or tokenizer, a folder or hub name; it must be the cache's tokenizer.
            objectives: What will be computed; only their signals are read, and a cache that lacks one is refused.
            steps: Number of optimizer steps.
            global_batch: Samples per step over all ranks.
            micro_batch: Samples per forward.
            first_step: Number of the first step, to continue a run.
            batching: Which samples share a forward; see `Batching`.
            row_tokens: With `packed`, tokens of a row.
            views_per_step: Views of a sample shown together.
            num_views: Use only this many views, from the first; `data.num_views` of a run file.
            seed: Seed of the order; `data.seed` of a run file.
            rank: Rank of this process.
            world: Number of processes, a divisor of `lanes`.
            lanes: Lanes of the order; `data.lanes` of a run file. None is the order before there were lanes, for its
                states.
            hot_cache: Folder on a local disk in which decoded row groups are kept; `data.hot_cache` of a run file.
            hot_cache_gib: Size to which it may grow, in GiB.

        Raises:
            CacheMismatchError: The cache is not for this tokenizer, or lacks a signal or temperature.
            RunFileError: The batches cannot be cut in this way, or the folder is something else.
        """
        from tide_cache.loading.fitting import require_fitting_caches
        from tide_cache.loading.hot_cache import open_hot_cache
        from tide_cache.loading.opening import OpenedCache, lanes_fault
        from tide_cache.loading.torch_dataset import MicroBatches
        from tide_cache.objectives import union_of_needs
        from tide_cache.pairing import TextTokenizer

        if min(micro_batch, global_batch, world) < 1 or global_batch % (micro_batch * world):
            raise RunFileError(
                f"global_batch: found {global_batch}, expected a multiple of micro_batch x world = "
                f"{micro_batch} x {world}"
            )
        if lanes is not None and (fault := lanes_fault("world", world, "lanes", lanes)):
            raise RunFileError(fault)
        if not 0 <= rank < world:
            raise RunFileError(f"rank: found {rank}, expected 0 to {world - 1}, below world")
        if num_views is not None and not 1 <= num_views <= self.num_views:
            raise RunFileError(f"num_views: found {num_views}, expected 1 to {self.num_views} views")
        if not 1 <= views_per_step <= (most := num_views or self.num_views):
            raise RunFileError(f"views_per_step: found {views_per_step}, expected 1 to {most} views")
        tokenizer = TextTokenizer.load(str(student))
        needs = [objective.needs for objective in objectives]
        opened = OpenedCache(self.root, self.manifest, self.signal_pass, num_views)
        require_fitting_caches([opened], tokenizer, needs)
        hot = None if hot_cache is None else open_hot_cache(Path(hot_cache), hot_cache_gib)
        return MicroBatches(
            partial(opened.source, union_of_needs(needs).signals, views_per_step, lanes and lanes // world, hot),
            self.cache_id,
            seed,
            opened.layout(tokenizer),
            BatchConfig(global_batch, micro_batch, batching, row_tokens, views_per_step),
            range(first_step, first_step + steps),
            rank,
            world,
            lanes,
        )

    def to_datasets(self, view: int, *, student: str | None = None) -> "Dataset":
        """Return one view of every sample as a `datasets.Dataset`; columns as in `tide-cache export`.

        `datasets` keeps it as an Arrow file in its cache folder and maps that into memory; the next call reuses
        the file.

        Args:
            view: Which view of each sample.
            student: The student tokenizer's folder or hub name; adds `student_text`.

        Raises:
            RunFileError: There is no such view.
            CacheMismatchError: The tokenizer is not the cache's.
        """
        from datasets import Dataset, Features

        from tide_cache.inspecting.export import ExportedView

        exported = ExportedView.open(self.root, view, signal_pass=self.signal_pass, student=student)
        values = {"location": str(self.root), "signal_pass": self.signal_pass, "view": view, "student": student}
        return Dataset.from_generator(
            _exported_rows,
            features=Features.from_arrow_schema(exported.schema),
            gen_kwargs=values | {"cache_id": self.cache_id},  # part of the name under which datasets keeps the file
        )

    def paths(self, table: TableName) -> list[str]:
        """Return a table's Parquet files in order, for DuckDB, Polars and the like; docs/format.md describes them.

        Args:
            table: `pairs`, or a pass.

        Raises:
            RunFileError: The cache has no such table.
        """
        if table not in self.manifest.tables:
            raise RunFileError(
                f"{self.root}: found no table {table!r}; expected one of {', '.join(self.manifest.tables)}"
            )
        return [str(shard_path(self.root, table, shard)) for shard in range(self.manifest.plan.num_shards)]


def _exported_rows(
    location: str, signal_pass: PassName, view: int, student: str | None, cache_id: str
) -> Iterator[dict[str, Any]]:
    from tide_cache.inspecting.export import ExportedView

    exported = ExportedView.open(cache_path(location), view, signal_pass=signal_pass, student=student)
    for rows in exported.groups():
        yield from rows


def preset_objectives(name: str, semantics: Semantics = "corrected") -> "tuple[Objective, ...]":
    """Return the objectives of a row of the paper's table; `PRESETS[name].signal_pass` is the pass they learn from.

    Args:
        name: For example `cross/tide-cross`.
        semantics: Weights and divisors as published, or corrected.

    Raises:
        RunFileError: There is no such row.
    """
    from tide_cache.objectives import objective_of

    try:
        preset = find_preset(name)
    except ValueError as error:
        raise RunFileError(str(error)) from None
    return tuple(objective_of(entry) for entry in read_objectives(preset.objectives, semantics))
