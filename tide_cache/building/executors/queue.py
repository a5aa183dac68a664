"""The shard numbers still to hand out, and those that workers died on."""

from collections import Counter, deque
from collections.abc import Iterable

from tide_cache.errors import TideCacheError

MAX_DEATHS = 3
"""Number of workers that may die on one shard; after that the machine, not chance, is to blame."""


class ShardQueue:
    """Hands out shard numbers in order; a shard that is put back comes first."""

    def __init__(self, shards: Iterable[int]) -> None:
        self._shards = deque(shards)
        self._deaths = Counter[int | None]()

    def __len__(self) -> int:
        """Return the shards that were not handed out."""
        return len(self._shards)

    def take(self) -> int | None:
        """Return the next shard number; None when none is waiting."""
        return self._shards.popleft() if self._shards else None

    def share(self, num_workers: int) -> int:
        """Return how many shards a worker may have in hand: one to write and one to capture, but not of the last ones.

        Args:
            num_workers: How many share what is left.
        """
        return 2 if len(self) > num_workers else 1

    def put_back(self, shard: int | None, how: str) -> None:
        """Take back the shard that a dead worker had.

        Args:
            shard: Number of its shard; None when it died before it had one.
            how: How it died, for example `killed by SIGKILL`.

        Raises:
            TideCacheError: It was the third to die there.
        """
        self._deaths[shard] += 1
        if self._deaths[shard] == MAX_DEATHS:
            place = "before they had a shard" if shard is None else f"on shard {shard}"
            raise TideCacheError(
                f"{MAX_DEATHS} workers died {place}, the last one {how}. Committed shards stay.\n"
                "Fix the cause (SIGKILL mostly means that memory ran out: use fewer workers or a larger machine), "
                "then run the same command again; it computes what is missing."
            )
        if shard is not None:
            self._shards.appendleft(shard)
