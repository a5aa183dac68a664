"""A cache's micro-batches as a PyTorch dataset: order and batches of `tide-cache train`, for loops of one's own.

Ranks and `DataLoader` workers share the stream without repeats. A worker prepares every so many-th micro-batch, and
the loader asks its workers in turn, so the order that arrives is the same for any number of them.
"""

from collections.abc import Callable, Iterator

from torch.utils.data import IterableDataset, get_worker_info

from tide_cache.loading.collate import CollatePlan
from tide_cache.loading.micro_batches import BatchPlan, step_micro_batches
from tide_cache.loading.order import SampleOrder
from tide_cache.loading.source import TeacherSource
from tide_cache.records import StudentBatch, Targets


class MicroBatches(IterableDataset[tuple[StudentBatch, Targets]]):
    """One rank's micro-batches of some steps, in order; give it to a `DataLoader` with `batch_size=None`.

    `Cache.torch_dataset` makes it. Every iteration begins at the first of its steps.

    Attributes:
        micro_batches_per_step: Of this rank: so many together make an optimizer step.
        collate_plan: Block size, mask and padding ids of the batches.
    """

    def __init__(
        self,
        open_source: Callable[[], TeacherSource],
        key: str,
        seed: int,
        collate_plan: CollatePlan,
        plan: BatchPlan,
        steps: range,
        rank: int = 0,
        world: int = 1,
    ):
        """Keep what is needed to read; nothing is opened before the first batch is asked for.

        Args:
            open_source: Opens the records; called once in each worker, so it must be possible to pickle it.
            key: Of the order.
            seed: Of the order.
            collate_plan: How records become batches.
            plan: How steps are cut; its global batch is a multiple of its micro-batch times the ranks.
            steps: Which steps of the endless stream, one after the other.
            rank: This process.
            world: Number of processes.
        """
        super().__init__()
        self._open_source, self._key, self._seed = open_source, key, seed
        self._plan, self._steps, self._rank, self._world = plan, steps, rank, world
        self.collate_plan = collate_plan
        self._batches_of_all_ranks = plan.global_batch // plan.micro_batch
        self.micro_batches_per_step = self._batches_of_all_ranks // world

    def __len__(self) -> int:
        """Micro-batches in all, of this rank and of all its workers."""
        return len(self._steps) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[tuple[StudentBatch, Targets]]:
        """Give this worker's micro-batches."""
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        source = self._open_source()
        order = SampleOrder(source.group_sizes, self._key, self._seed)
        for number in range(first, len(self), stride):
            step, own = divmod(number, self.micro_batches_per_step)
            # Micro-batch k goes to rank k modulo the ranks; alone it is the share of rank k of as many as there are.
            k = self._rank + own * self._world
            where = source, order, self.collate_plan, self._plan
            yield from step_micro_batches(*where, self._steps[step], k, self._batches_of_all_ranks)
