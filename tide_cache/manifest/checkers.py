"""Check many shards at once: hashing runs outside of Python, so threads suffice; for decoding each has a process."""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Self

from tide_cache.child import Child
from tide_cache.errors import UnreadableError
from tide_cache.manifest.commit import CommitRecord
from tide_cache.manifest.shard_check import Problem, ShardCheck

CHECKER = "tide_cache.manifest.check_process"
LEAST_BYTES_TO_SHARE = 64 << 20
"""Smaller caches are checked in the seconds that processes take to start."""
ShardRecords = tuple[CommitRecord, CommitRecord | None]
"""Of a shard, and of its pairs where the manifest's entry of them can be read."""
AHEAD = 256
"""Shards that are asked for at once: results come in order, with few in memory."""


class Checkers:
    """Threads that check shards; used in a `with` block."""

    def __init__(self, check: ShardCheck, num_bytes: int, has_processes: bool = True) -> None:
        """Start no process yet.

        Args:
            check: What each does.
            num_bytes: Of all shards.
            has_processes: Whether processes of this machine can read the cache.
        """
        num_threads = len(os.sched_getaffinity(0)) if num_bytes >= LEAST_BYTES_TO_SHARE else 1
        self._check, self._elsewhere = check, check.deep and has_processes and num_threads > 1
        is_shared = num_threads > 1 and self._elsewhere == check.deep
        self._pool = ThreadPoolExecutor(num_threads, "verify") if is_shared else None
        self._own, self._children = threading.local(), list[_Checker]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.popen.kill()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for child in self._children:
            child.bury()

    def problems(self, records: Iterable[ShardRecords]) -> Iterator[tuple[CommitRecord, list[Problem]]]:
        """Yield what is wrong with each shard, in order; records come with those of their pairs.

        Raises:
            UnreadableError: A file cannot be read now.
        """
        if self._pool is None:
            for record, pairs in records:
                yield record, list(self._check.problems(record, pairs))
            return
        left = iter(records)
        while some := list(islice(left, AHEAD)):
            for (record, _), found in zip(some, self._pool.map(self._problems_of, some), strict=True):
                yield record, found

    def _problems_of(self, records: ShardRecords) -> list[Problem]:
        if not self._elsewhere:
            return list(self._check.problems(*records))
        if not hasattr(self._own, "child"):
            self._own.child = _Checker(self._check)
            self._children.append(self._own.child)
        answer = self._own.child.ask(records)
        if answer is None:  # it has died, of too little memory for example; what it was at is checked here
            return list(self._check.problems(*records))
        if "unreadable" in answer:
            raise UnreadableError(answer["unreadable"])
        return [Problem.model_validate(problem) for problem in answer["problems"]]


class _Checker(Child):
    """One process."""

    def __init__(self, check: ShardCheck) -> None:
        super().__init__([CHECKER], {}, 1)
        self.send(json.dumps({"root": str(check.root), "identity": check.identity.model_dump_json()}))

    def ask(self, records: ShardRecords) -> dict[str, Any] | None:
        """Return what is wrong with a shard; None from a process that has died."""
        self.send(json.dumps([record and record.model_dump_json() for record in records]))
        while not self.has_ended:
            for answer in self.read():
                return answer
        return None
