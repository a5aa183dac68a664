"""What the engine and its executors say to each other."""

from collections.abc import Sequence
from typing import Protocol

from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.shard import BuiltShard
from tide_cache.config.build import BuildRun

TICK_S = 0.2
"""An executor calls its log at least this often, so that a stop is noticed."""


class BuildLog(Protocol):
    """Hears about the workers' progress; raises to stop the build."""

    def on_views(self, count: int) -> None:
        """Hear that views were captured; 0 for none yet, below 0 for those that a dead worker took with it.

        Raises:
            Interrupted: A stop was asked for.
        """

    def on_shard(self, built: BuiltShard) -> None:
        """Hear that a shard is committed; raises as `on_views`."""


class Executor(Protocol):
    """Runs workers that build shards."""

    def check(self, run: BuildRun) -> None:
        """Check, before anything is written, that the workers are available.

        Raises:
            TideCacheError: They are not; says what is missing.
        """

    def build(self, run: BuildRun, prepared: PreparedBuild, shards: Sequence[int], log: BuildLog) -> None:
        """Build shards; no worker is left when this returns or raises.

        Args:
            run: The run file.
            prepared: The same, checked; workers elsewhere check it again.
            shards: Numbers of the shards to build.
            log: Hears about every step.

        Raises:
            Interrupted: `log` asked for a stop.
            TideCacheError: A worker failed, or workers kept dying on a shard.
        """
