"""One worker of a build: it loads a teacher once and builds the shards whose numbers it gets.

A thread encodes and commits a shard while the teacher is at the next one, so the teacher never waits for a disk.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Self

from tide_cache.aside import Aside
from tide_cache.building.prepare import prepare_build, published_build
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.published_pairs import has_all_pairs
from tide_cache.building.run_record import require_same_tokens
from tide_cache.building.shard import BuiltShard, EncodeSignals, SignalEncoder, capture_shard
from tide_cache.config.build import BuildRun
from tide_cache.corpus.unread import KnownCorpus
from tide_cache.errors import CacheIncompleteError
from tide_cache.manifest import CacheFolder, tables_of
from tide_cache.modeling.backbone import DTYPES, load_backbone
from tide_cache.teacher.capture import Teacher
from tide_cache.teacher.imported import ImportedTeacher
from tide_cache.teacher.sorting import AnyTeacher


def load_teacher(run: BuildRun, build: PreparedBuild, device: str) -> AnyTeacher:
    """Load the teacher's weights onto a device; none where an engine wrote down what it says."""
    if build.topk is not None:
        settings = build.capture
        return ImportedTeacher(
            build.topk, build.checkpoint.vocab_size, settings.signals, settings.shared_vocab_size, build.spelling()
        )
    backbone = load_backbone(build.checkpoint, DTYPES[run.teacher.dtype], device, **asdict(run.teacher.loading))
    return Teacher(backbone, build.capture, build.spelling(), is_sorted_aside=works_aside(device))


def works_aside(device: str) -> bool:
    """Tell whether sorting and encoding leave this process: in a thread they halve the rate of a GPU's kernels."""
    return device.startswith("cuda")


class ShardWorker:
    """Builds shards on one device."""

    def __init__(self, run: BuildRun, build: PreparedBuild, device: str) -> None:
        self._run, self._build, self._device = run, build, device
        self._folder = CacheFolder(run.build.out)
        self._teacher: AnyTeacher | None = None
        self._encode: EncodeSignals | None = None
        self._writer = ThreadPoolExecutor(1, "writer")
        self._written: Future[BuiltShard] | None = None

    @classmethod
    def elsewhere(cls, run: BuildRun, device: str) -> Self:
        """Make a worker in another process, which reads published pairs, and by itself the checkpoint.

        Args:
            run: The run file.
            device: Where the teacher goes.

        Raises:
            CacheIncompleteError: The cache that the build began cannot be seen from here.
            CacheMismatchError: What is read here is not what the build began with.
        """
        folder = CacheFolder(run.build.out)
        try:
            _ = folder.plan_document
        except CacheIncompleteError:
            raise CacheIncompleteError(
                f"{run.build.out}: a worker finds no plan.json there; build.out must lie on a file system that the "
                "machines of all workers mount at the same path"
            ) from None
        identity = folder.plan_document.identity
        known = KnownCorpus(identity.corpus_hash, identity.num_rows) if has_all_pairs(folder) else None
        if known is not None and run.teacher.topk is None:
            return cls(run, published_build(run, folder, known), device)
        build = prepare_build(run, pairs_all=False, known=known)
        folder.require_fits(build.identity, build.plan)
        require_same_tokens(run, build)
        return cls(run, build, device)

    def build(self, shard: int, on_views: Callable[[int], None]) -> "Future[BuiltShard]":
        """Capture what is missing of a shard, and leave the rest to the writer; at most two shards are in memory.

        Args:
            shard: Number of the shard; it may have been committed by others meanwhile.
            on_views: As for `capture_shard`.

        Returns:
            What is built, once it is committed.
        """
        if all(self._folder.is_committed(table, shard) for table in tables_of(self._build.passes)):
            return self._writer.submit(BuiltShard, shard, 0, 0)
        if self._teacher is None:  # the first shard that needs it
            self._teacher = load_teacher(self._run, self._build, self._device)
            if works_aside(self._device):
                self._encode = partial(Aside(SignalEncoder.of(self._build)).call, "encode")
        write = capture_shard(self._build, self._teacher, self._folder, shard, on_views, self._encode)
        if self._written is not None:
            self._written.result()
        self._written = self._writer.submit(write)
        return self._written

    def close(self) -> None:
        """Wait for pending writes; this worker gets nothing afterwards."""
        self._writer.shutdown()
