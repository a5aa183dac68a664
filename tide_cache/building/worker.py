"""One worker of a build: given shard numbers, it builds them with a teacher that it loads once."""

from collections.abc import Callable
from typing import Self

from tide_cache.building.prepare import PreparedBuild, prepare_build
from tide_cache.building.shard import BuiltShard, build_shard
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheIncompleteError
from tide_cache.manifest import CacheFolder, tables_of
from tide_cache.modeling.backbone import DTYPES, load_backbone
from tide_cache.teacher.capture import Teacher


def load_teacher(run: BuildRun, build: PreparedBuild, device: str) -> Teacher:
    """Load the teacher's weights onto a device."""
    backbone = load_backbone(build.checkpoint, DTYPES[run.teacher.dtype], device, **run.teacher.loading)
    return Teacher(backbone, build.capture, build.spelling())


class ShardWorker:
    """Builds shards on one device."""

    def __init__(self, run: BuildRun, build: PreparedBuild, device: str) -> None:
        self._run, self._build, self._device = run, build, device
        self._folder = CacheFolder(run.build.out)
        self._teacher: Teacher | None = None

    @classmethod
    def elsewhere(cls, run: BuildRun, device: str) -> Self:
        """Make a worker in another process, which reads corpus, tokenizers and checkpoint by itself.

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
        build = prepare_build(run)
        folder.require_fits(build.identity, build.plan)
        return cls(run, build, device)

    def build(self, shard: int, on_views: Callable[[int], None]) -> BuiltShard:
        """Build what is missing of a shard; the teacher is loaded when the first one needs it.

        Args:
            shard: Number of the shard; it may have been committed by others meanwhile.
            on_views: As for `build_shard`.
        """
        if all(self._folder.is_committed(table, shard) for table in tables_of(self._build.passes)):
            return BuiltShard(shard, 0, 0)
        if self._teacher is None:
            self._teacher = load_teacher(self._run, self._build, self._device)
        return build_shard(self._build, self._teacher, self._folder, shard, on_views)
