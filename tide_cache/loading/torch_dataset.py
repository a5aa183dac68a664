"""A cache's micro-batches as a PyTorch dataset: order and batches of `tide-cache train`, for custom loops.

Ranks and `DataLoader` workers share the stream without repeats. Of n workers, each prepares every n-th micro-batch, and
the loader asks them in turn, so the order of the batches is the same for any number of workers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from tide_cache.config.sections import BatchConfig
from tide_cache.config.settings import LANES
from tide_cache.errors import RunFileError
from tide_cache.loading.collate import BatchLayout, batch_of
from tide_cache.loading.micro_batches import BatchRows, rank_batches
from tide_cache.loading.opening import make_order
from tide_cache.loading.source import TeacherSource
from tide_cache.records import StudentBatch, Targets


class MicroBatches(IterableDataset[tuple[StudentBatch, Targets]]):
    """One rank's micro-batches of some steps, in order; give it to a `DataLoader` with `batch_size=None`.

    `Cache.torch_dataset` creates it. Every iteration begins at the first of its steps, except the one after
    `load_state_dict`, which begins where the state was taken. (If a plain `DataLoader` starts new workers each time,
    they get the dataset as it was given, so that every iteration begins there.)

    Attributes:
        micro_batches_per_step: Micro-batches of this rank in an optimizer step.
        layout: Block size, mask and padding ids of the batches.
    """

    def __init__(
        self,
        open_source: Callable[[], TeacherSource],
        key: str,
        seed: int,
        layout: BatchLayout,
        config: BatchConfig,
        steps: range,
        rank: int = 0,
        world: int = 1,
        lanes: int | None = LANES,
    ):
        """Keep the arguments; nothing is opened before the first batch is asked for.

        Args:
            open_source: Opens the records; called once in each worker, so it must be picklable.
            key: Key of the order.
            seed: Seed of the order.
            layout: How records become batches.
            config: How steps are cut; its global batch is a multiple of its micro-batch times the ranks.
            steps: The steps of the endless stream to iterate over, in order.
            rank: This process.
            world: Number of processes, a divisor of the lanes.
            lanes: Of the order; None for the order before there were lanes.
        """
        super().__init__()
        self._open_source, self._key, self._seed = open_source, key, seed
        self._config, self._steps, self._rank, self._world = config, steps, rank, world
        self.layout = layout
        self._lanes = lanes
        self.micro_batches_per_step = config.global_batch // (config.micro_batch * world)
        self._next = 0
        self._resume: tuple[int, bool] | None = None
        """Where to begin, and whether that is this worker's own place."""

    def __len__(self) -> int:
        """Return the number of micro-batches of this rank, over all its workers."""
        return len(self._steps) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[tuple[StudentBatch, Targets]]:
        """Return an iterator over this worker's micro-batches."""
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        begin, is_own = self._resume or (0, False)
        self._next, self._resume = begin if is_own else begin + first, None
        return self._from_next(stride)

    def _from_next(self, stride: int) -> Iterator[tuple[StudentBatch, Targets]]:
        source = self._open_source()
        order = make_order(source.groups, self._key, self._seed, self._lanes)
        is_apart = self._config.batching == "order"  # else the whole step is planned to know one part

        @lru_cache(maxsize=1)
        def planned(step: int, only: int | None = None) -> list[BatchRows]:
            where = self.layout, self._config, self._steps[step], self._rank, self._world
            return rank_batches(source, order, *where, only=only)

        for number in range(self._next, len(self), stride):
            step, own = divmod(number, self.micro_batches_per_step)
            rows = planned(step, own)[0] if is_apart else planned(step)[own]
            self._next = number + stride
            yield batch_of(rows, self.layout)

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the iteration as plain numbers; in a loader's worker, the worker's.

        `StatefulDataLoader` of torchdata asks its workers. The workers of a plain `DataLoader` run ahead of what it has
        returned: count the batches taken, and use `state_after`.
        """
        worker = get_worker_info()
        return self.state_after(self._next) | ({} if worker is None else {"workers": [worker.id, worker.num_workers]})

    def state_after(self, num_taken: int) -> dict[str, Any]:
        """Return the state after this number of micro-batches of this rank, for any number of workers."""
        return {"next": num_taken, "stream": self._stream()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where a state was taken: in this process, or in workers that start later.

        Raises:
            RunFileError: It is from other batches, or from a worker of another number of workers.
        """
        found = dict(state.get("stream", {}))
        if found and "lanes" not in found:  # of a release before there were lanes: that order goes on
            self._lanes, found["lanes"] = None, None
        expected = self._stream()
        if faults := [
            f"{key} {found.get(key)!r} is not {value!r}" for key, value in expected.items() if found.get(key) != value
        ]:
            raise RunFileError(
                f"state of other micro-batches: {'; '.join(faults)}. Make the dataset with the settings of the state."
            )
        worker = get_worker_info()
        own = None if worker is None else [worker.id, worker.num_workers]
        if "workers" in state and list(state["workers"]) != own:
            raise RunFileError(
                f"state of worker {state['workers'][0]} of {state['workers'][1]}, loaded in "
                f"{'no worker' if own is None else f'worker {own[0]} of {own[1]}'}. Use as many workers, or "
                "state_after(what was taken)."
            )
        self._resume = int(state["next"]), "workers" in state

    def _stream(self) -> dict[str, Any]:
        """Return the settings of the iteration."""
        steps, ranks = [self._steps.start, self._steps.stop], [self._rank, self._world]
        return (
            {"key": self._key, "seed": self._seed, "steps": steps, "ranks": ranks}
            | {"lanes": self._lanes}
            | asdict(self._config)
        )
