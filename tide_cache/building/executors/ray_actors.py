"""Workers as Ray actors, on this machine or on a running cluster."""

import atexit
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any

from tide_cache.building.executors.answers import Answer, answer_of, attempted, built_of
from tide_cache.building.executors.base import TICK_S, BuildLog
from tide_cache.building.executors.queue import ShardQueue
from tide_cache.building.executors.ray_words import heard_stderr, refusal
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.shard import BuiltShard
from tide_cache.building.worker import ShardWorker
from tide_cache.config.build import BuildRun
from tide_cache.errors import RunFileError, TideCacheError
from tide_cache.modeling.backbone import resolve_device

ASK_S = 1.0
"""Time between two questions to an actor about its views."""
LOST_S = 10.0
"""Time without an answer of the cluster's head after which it counts as lost; after 60 s Ray ends the process."""
PLACING_S = 600.0
"""Time without any placed actor after which the build gives up; clusters that grow on demand take minutes."""


class RayActors:
    """The executor of `--executor ray`."""

    def __init__(self, num_workers: int, address: str | None = None) -> None:
        """Remember how many, and where.

        Args:
            num_workers: Actors that build at the same time.
            address: Head of a running cluster, `HOST:PORT`; None starts one on this machine.
        """
        self._num_workers, self._address = num_workers, address

    def check(self, run: BuildRun) -> None:
        """Check that Ray is installed, and that the head of the cluster answers."""
        _import_ray()
        if self._address is None:
            resolve_device(run.teacher.device)
        elif not _answers(self._address):
            raise TideCacheError(
                f"--ray-address {self._address}: nothing answers there; expected HOST:PORT of a running Ray head "
                "(`ray start --head` prints it)"
            )

    def build(self, run: BuildRun, prepared: PreparedBuild, shards: Sequence[int], log: BuildLog) -> None:
        """Build shards; see `Executor`."""
        ray = _import_ray()
        _connect(ray, self._address, self._num_workers)
        head = ray.get_runtime_context().gcs_address
        try:
            crew = _Crew(ray, run, shards, log, head)
            for _ in range(min(self._num_workers, len(shards))):
                crew.add_actor()
            while crew.is_at_work:
                crew.step()
            if not _answers(head):
                raise _lost(head)
        finally:
            _part(ray, head)


class ShardActor:
    """The actor: a worker that answers while it builds."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._run = BuildRun.model_validate(run)
        self._worker: ShardWorker | None = None
        self._teacher_is_free = Lock()
        self._num_views: dict[int, int] = {}

    def build(self, shard: int) -> Answer:
        """Build a shard; a second one may be captured while this one is written.

        Args:
            shard: Its number.
        """
        self._num_views[shard] = 0

        def on_views(count: int) -> None:
            self._num_views[shard] += count

        def build() -> "Future[BuiltShard]":
            if self._worker is None:
                self._worker = ShardWorker.elsewhere(self._run, resolve_device(self._run.teacher.device))
            return self._worker.build(shard, on_views)

        with self._teacher_is_free:
            future = attempted(build)
        return {**answer_of(future.result), "num_views": self._num_views.pop(shard)}

    def num_views(self) -> dict[int, int]:
        """Return how many views of each current shard are captured."""
        return dict(self._num_views)


class _Hand:
    """What the driver knows of one actor.

    Attributes:
        actor: The actor.
        work: Answers waited for, and the shard of each; the first one, of no shard, says that the actor is placed.
        num_views: Of each of its shards, the views that it has captured.
        question: How far it is, asked and not yet answered.
    """

    def __init__(self, actor: Any, ready: Any) -> None:
        self.actor = actor
        self.work: dict[Any, int | None] = {ready: None}
        self.num_views: dict[int, int] = {}
        self.question: Any = None
        self.is_placed = False


class _Crew:
    """The actors of one build."""

    def __init__(self, ray: Any, run: BuildRun, shards: Sequence[int], log: BuildLog, head: str) -> None:
        self._ray, self._log, self._head = ray, log, head
        self._queue = ShardQueue(shards)
        self._left = len(shards)
        self._hands: list[_Hand] = []
        self._next_question_s = self._heard_s = self._placed_s = time.monotonic()
        has_gpus = run.teacher.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        if run.teacher.device.startswith("cuda") and not has_gpus:
            raise RunFileError(f"teacher.device {run.teacher.device}: the Ray cluster has no GPU; use 'auto' or 'cpu'")
        # A teacher of several GPUs takes all of a node; Ray shows an actor its own alone, numbered from 0.
        whole_node = max((int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
        num_gpus = whole_node if run.teacher.device_map is not None else 1
        needs = {"num_gpus": num_gpus} if has_gpus else {"num_cpus": 1}
        device = "cuda" if has_gpus else "cpu"
        here = run.model_copy(update={"teacher": run.teacher.model_copy(update={"device": device})})
        self._document = here.model_dump(mode="json")
        self._options = {**needs, "max_concurrency": 3, "scheduling_strategy": "SPREAD"}  # two shards and a question

    @property
    def is_at_work(self) -> bool:
        """Whether shards are still to be built."""
        return self._left > 0

    def add_actor(self) -> None:
        """Ask for an actor; it gets a shard once it is placed."""
        actor = self._ray.remote(ShardActor).options(**self._options).remote(self._document)
        self._hands.append(_Hand(actor, actor.num_views.remote()))

    def step(self) -> None:
        """Wait a little for answers, and hand out shards to those that are free."""
        by_answer = {answer: hand for hand in self._hands for answer in hand.work}
        done, _ = self._ray.wait(list(by_answer), timeout=TICK_S) if by_answer else ((), ())
        for answer in done:
            if answer in by_answer[answer].work:  # another answer may have shown that its actor is dead
                self._hear(by_answer[answer], answer)
        for hand in self._hands:
            while hand.is_placed and len(hand.work) < self._queue.share(len(self._hands)):
                if (shard := self._queue.take()) is None:
                    break
                hand.num_views[shard] = 0
                hand.work[hand.actor.build.remote(shard)] = shard
        self._ask()
        self._require_cluster()
        self._log.on_views(0)

    def _hear(self, hand: _Hand, answer: Any) -> None:
        try:
            value = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._mourn(hand, error)
            return
        shard = hand.work.pop(answer)
        if shard is None:
            hand.is_placed = True
            return
        self._count(hand, shard, value["num_views"])
        built = built_of(value)
        del hand.num_views[shard]
        self._left -= 1
        self._log.on_shard(built)

    def _mourn(self, hand: _Hand, error: Exception) -> None:
        """Put back the shards of a dead actor, and ask for another one."""
        self._hands.remove(hand)
        self._ray.kill(hand.actor)  # one that was only out of reach must not continue
        self._log.on_views(-sum(hand.num_views.values()))
        for shard in reversed(hand.work.values()):
            self._queue.put_back(shard, f"as Ray says: {' '.join(str(error).split())}")
        hand.work.clear()
        self.add_actor()

    def _ask(self) -> None:
        """Ask busy actors, once in a while, how far they are."""
        now_s = time.monotonic()
        if now_s < self._next_question_s:
            return
        self._next_question_s = now_s + ASK_S
        for hand in self._hands:
            if hand.question is not None:
                answered, _ = self._ray.wait([hand.question], timeout=0)
                if not answered:
                    continue
                try:
                    counts = self._ray.get(hand.question)
                except self._ray.exceptions.RayError:
                    continue  # it is dead; the answer it owes says so
                for shard in counts.keys() & hand.num_views.keys():
                    self._count(hand, shard, max(counts[shard], hand.num_views[shard]))
            hand.question = hand.actor.num_views.remote() if hand.num_views else None

    def _count(self, hand: _Hand, shard: int, num_views: int) -> None:
        grown, hand.num_views[shard] = num_views - hand.num_views[shard], num_views
        self._log.on_views(grown)

    def _require_cluster(self) -> None:
        """Notice a lost head before Ray does, and a cluster that has no place for a single actor.

        Raises:
            TideCacheError: One of these.
        """
        now_s = time.monotonic()
        if any(hand.is_placed for hand in self._hands):
            self._placed_s = now_s
        if now_s - self._placed_s > PLACING_S:
            raise TideCacheError(
                f"The Ray cluster at {self._head} had no place for a worker in {PLACING_S:.0f} s: one needs "
                f"{self._options}, all nodes together have {self._ray.cluster_resources()}. Committed shards stay. "
                "Free or add nodes, then run the same command again."
            )
        if now_s - self._heard_s < LOST_S / 4:
            return
        if _answers(self._head):
            self._heard_s = now_s
        elif now_s - self._heard_s > LOST_S:
            raise _lost(self._head)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise RunFileError(
            "--executor ray needs Ray, which is not installed here: pip install 'tide-cache[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str | None, num_workers: int) -> None:
    """Join a cluster, or start one that is as large as needed; signal handlers are left as they were."""
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # a user who asked for a cache has not agreed to usage reports
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {"num_cpus": max(num_workers, os.cpu_count() or 1), "include_dashboard": False}
    heard: list[str] = []
    try:
        with heard_stderr() as heard:
            ray.init(
                **({"address": address} if address is not None else {"address": "local", **own}),
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} cannot be joined" if address is not None else "Ray cannot be started"
        raise TideCacheError(f"{where}: {refusal(error, heard)}") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _part(ray: Any, head: str) -> None:
    """Leave the cluster, and end the one that was started for this build."""
    if _answers(head):
        ray.shutdown()
        return
    atexit.unregister(ray.shutdown)  # it would wait for the lost head until Ray ends the process,
    atexit.register(_leave)  # and without it the interpreter crashes on its way out


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(TideCacheError.exit_code)


def _lost(head: str) -> TideCacheError:
    return TideCacheError(
        f"The Ray cluster is lost: its head at {head} does not answer. Committed shards stay. Start the cluster again "
        "and run the same command; it computes what is missing."
    )


def _answers(address: str) -> bool:
    """Return whether a server listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True
