"""Shards one after the other, in this process."""

from collections.abc import Sequence
from contextlib import closing

from tide_cache.building.executors.base import BuildLog
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.worker import ShardWorker
from tide_cache.config.build import BuildRun
from tide_cache.modeling.backbone import require_means, resolve_device


class InProcess:
    """The executor that builds in this process."""

    def check(self, run: BuildRun) -> None:
        """Find the device, and what the teacher needs on it."""
        require_means(resolve_device(run.teacher.device), run.teacher.loading)

    def build(self, run: BuildRun, prepared: PreparedBuild, shards: Sequence[int], log: BuildLog) -> None:
        """Build shards; see `Executor`."""
        with closing(ShardWorker(run, prepared, resolve_device(run.teacher.device))) as worker:
            writing = worker.build(shards[0], log.on_views)
            for shard in shards[1:]:
                following = worker.build(shard, log.on_views)
                log.on_shard(writing.result())
                writing = following
            log.on_shard(writing.result())
