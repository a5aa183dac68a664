"""How many of the tokens that a student computes are tokens of samples, on GSM8K, by how micro-batches are made up.

And how many the busiest of several ranks computes, on which all others wait.
"""

from typing import get_args

from benchmarks.build import MASK
from benchmarks.options import Options, shared_file
from benchmarks.pairing import gsm8k
from tide_cache.config.sections import BatchConfig, ViewsConfig
from tide_cache.config.settings import LANES, Batching
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.groups import Groups
from tide_cache.loading.micro_batches import padded_lengths, rank_batches, step_micro_batches
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.source import PlainSource
from tide_cache.pairing import TextTokenizer, encode_student

BLOCK_SIZE, MAX_LENGTH, GLOBAL_BATCH, MICRO_BATCH = 32, 512, 64, 8
WORLDS = (1, 2, 4, 8)


def run(options: Options) -> dict[str, float]:
    """Go through whole steps of one epoch; nothing is trained."""
    tokenizer = TextTokenizer.load(str(shared_file("tokenizers/qwen")), **MASK)
    rows = gsm8k(options.rows)
    figures = {}
    for ending, fills in (("", True), ("_unfilled", False)):
        pairs = encode_student(
            rows, tokenizer, max_length=MAX_LENGTH, block_size=BLOCK_SIZE, fill_last_block=fills
        ).pairs
        views = ViewsConfig(4, seed=0, time_sampling="stratified", schedule="linear", complementary=False)
        source, order = PlainSource(pairs, views), LaneOrder(Groups.of_sizes([len(pairs)]), "packing", 0, LANES)
        layout = BatchLayout(tokenizer.mask_id, tokenizer.pad_id, BLOCK_SIZE)
        for batching in get_args(Batching):
            config = BatchConfig(GLOBAL_BATCH, MICRO_BATCH, batching, MAX_LENGTH)
            real = computed = 0
            for step in range(max(1, len(pairs) // GLOBAL_BATCH)):
                for batch, _ in step_micro_batches(source, order, layout, config, step, 0, 1):
                    real += int(batch.is_real_BL.sum())
                    computed += batch.is_real_BL.numel()
            figures[f"{batching}_useful_token_share{ending}"] = real / computed
            if fills:
                figures |= {f"{batching}_busiest_w{n}": busiest(source, order, layout, config, n) for n in WORLDS}
        if fills:
            config = BatchConfig(GLOBAL_BATCH, MICRO_BATCH, "packed", 2 * MAX_LENGTH)
            figures |= {f"packed_wide_busiest_w{n}": busiest(source, order, layout, config, n) for n in WORLDS}
            config = BatchConfig(GLOBAL_BATCH * max(WORLDS), MICRO_BATCH)
            figures |= {f"length_8_times_busiest_w{n}": busiest(source, order, layout, config, n) for n in WORLDS}
    return figures


def busiest(source: PlainSource, order: LaneOrder, layout: BatchLayout, config: BatchConfig, world: int) -> float:
    """Return the tokens that the busiest rank of each step computes, compared with an equal share of the samples'.

    Args:
        source: Of samples whose last blocks are filled.
        order: Of the samples.
        layout: Of the batches.
        config: How steps are cut.
        world: Number of ranks.
    """
    useful = computed = 0
    for step in range(order.num_samples // config.global_batch):
        of_ranks = [rank_batches(source, order, layout, config, step, rank, world) for rank in range(world)]
        rows = [[[sum(padded_lengths(row, BLOCK_SIZE)) for row in batch] for batch in of_rank] for of_rank in of_ranks]
        useful += sum(sum(batch) for of_rank in rows for batch in of_rank)
        computed += max(sum(len(batch) * max(batch) for batch in of_rank) for of_rank in rows)
    return computed * world / useful
