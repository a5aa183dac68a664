"""What grows with samples, shards, ranks and workers, from 10^4 to 10^8 samples and 1 to 512 of these.

Nothing here needs a teacher: groups, shards and commit records are made up, and the library's own code orders, opens,
lists and checks them. Seconds are of the processor. docs/scaling-out.md states the laws.
"""

import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from benchmarks.material import Shape, write_cache
from benchmarks.options import Options
from tide_cache.config.settings import LANES
from tide_cache.loading.groups import Groups
from tide_cache.loading.order import LaneOrder
from tide_cache.manifest import CacheFolder, CommitRecord, ManifestHead, PlanDocument, ShardPlan, verify
from tide_cache.manifest.finishing import make_document
from tide_cache.shards import SAMPLES_PER_GROUP, ShardLayout, TableName, files_of, publish_json

SAMPLES = (10_000, 1_000_000, 100_000_000)
RANKS = (1, 2, 4, 8, 64, 512)
SIMULATED_SAMPLES = 1 << 18
SHARD_SAMPLES, NUM_SHARDS = 512, 100_000
LARGER = 64
"""How many times the samples of the small cache the one has that all cores check."""
TABLES: tuple[TableName, ...] = ("pairs", "plain")
OPEN = """
import json, sys, time
from tide_cache.api import open_cache
def peak_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before_mib = peak_mib()
started_s = time.process_time()
cache = open_cache(sys.argv[1])
opened_s, opened_mib = time.process_time() - started_s, peak_mib()
started_s = time.process_time()
cache.manifest.reader(cache.root, "plain", cache.manifest.plan.num_shards - 1)
print(json.dumps([opened_s, opened_mib, opened_mib - before_mib, time.process_time() - started_s]))
"""
"""Seconds of the processor, so that what else runs on the machine takes none of them."""


def run(options: Options) -> dict[str, float]:
    """Measure; `options.rows` samples are written as a cache for `verify --deep`."""
    figures: dict[str, float] = {}
    for ranks in RANKS:
        decoded, own = decoded_by_rank(ranks)
        if ranks <= 8:
            figures[f"decoded_by_own_w{ranks}"] = decoded / own
        figures[f"read_by_cache_w{ranks}"] = decoded * ranks / SIMULATED_SAMPLES
    for samples in SAMPLES:
        figures |= order_figures(samples)
    with tempfile.TemporaryDirectory(prefix="tide-cache-growth-") as folder:
        figures |= manifest_figures(Path(folder, "open"), options.repeats)
        figures |= folder_figures(Path(folder, "folder"))
        figures |= verify_figures(Path(folder, "verify"), options)
    for samples in SAMPLES:
        shards = -(-samples // SHARD_SAMPLES)
        head = figures["manifest_head_bytes_per_shard"] * shards / 2**20
        figures[f"manifest_mib_in_one_{samples:.0e}"] = figures["record_bytes"] * shards * len(TABLES) / 2**20
        figures[f"manifest_head_mib_{samples:.0e}"] = head
    return figures


def decoded_by_rank(ranks: int) -> tuple[int, int]:
    """Return the samples that the first rank decodes and takes in an epoch, with one group held for each of its lanes.

    Args:
        ranks: How many share the epoch; more than the default number of lanes need as many lanes.
    """
    lanes, decoded, own = max(LANES, ranks), 0, 0
    groups = Groups.of_runs([SHARD_SAMPLES] * (SIMULATED_SAMPLES // SHARD_SAMPLES), SAMPLES_PER_GROUP)
    order = LaneOrder(groups, "growth", 0, lanes)
    held: OrderedDict[int, None] = OrderedDict()
    for visit in order.visits(range(0, SIMULATED_SAMPLES, ranks)):
        group = visit.sample // SAMPLES_PER_GROUP
        decoded += SAMPLES_PER_GROUP * (group not in held)
        own += 1
        held[group] = None
        held.move_to_end(group)
        if len(held) > lanes // ranks:
            held.popitem(last=False)
    return decoded, own


def order_figures(samples: int) -> dict[str, float]:
    """Measure the first turns of an epoch of so many samples: one of each lane."""
    groups = Groups.of_runs([SHARD_SAMPLES] * (samples // SHARD_SAMPLES), SAMPLES_PER_GROUP)
    tracemalloc.start()
    seconds = _seconds(lambda: LaneOrder(groups, "growth", 0, LANES).visits(range(LANES)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {f"order_s_{samples:.0e}": seconds, f"order_mib_{samples:.0e}": peak / 2**20}


def manifest_figures(root: Path, repeats: int) -> dict[str, float]:
    """Write the manifest of 100,000 shards from made-up commit records, and open it in fresh processes."""
    identity = Shape("shared", SHARD_SAMPLES * NUM_SHARDS).identity()
    plan = ShardPlan(
        num_rows=identity.num_rows, samples_per_shard=SHARD_SAMPLES, batch_tokens=1, head_rows=1, views_per_forward=1
    )
    folder = CacheFolder(root)
    folder.begin(identity, plan, ("plain",))
    record_of = made_up_records(folder.plan_document)
    documents: list[ManifestHead] = []

    def write() -> None:
        document = make_document(root, folder.plan_document, TABLES, record_of, files_of(root))
        assert isinstance(document, ManifestHead), "a manifest of many shards"
        documents.append(document)

    write_s = _seconds(write)
    publish_json(root / "manifest.json", documents[0].model_dump(mode="json"))
    found = [
        json.loads(subprocess.run([sys.executable, "-c", OPEN, str(root)], capture_output=True, check=True).stdout)
        for _ in range(repeats)
    ]
    seconds, peaks, grown, readers = zip(*found, strict=True)
    parts = [part for of_table in documents[0].parts.values() for part in of_table]
    return {
        "open_s_100k_shards": median(seconds),
        "open_rss_mib_100k_shards": median(peaks),
        "open_grows_by_mib_100k_shards": median(grown),
        "first_shard_of_a_part_s": median(readers),
        "manifest_write_us_per_record": write_s * 1e6 / (NUM_SHARDS * len(TABLES)),
        "manifest_head_bytes_per_shard": (root / "manifest.json").stat().st_size / NUM_SHARDS,
        "record_bytes": sum(part.size for part in parts) / (NUM_SHARDS * len(TABLES)),
    }


def made_up_records(document: PlanDocument) -> Callable[[TableName, int], CommitRecord]:
    """Return what makes the record of any shard, as long as a real one."""
    views = {"pairs": 1, "plain": document.identity.stored_views}
    statistics = {f"column_bytes.of_a_column_{number}": 123_456 for number in range(24)}
    records = {
        table: CommitRecord(
            cache_id=document.cache_id,
            plan_hash=document.plan_hash,
            table=table,
            shard=0,
            size=64 << 20,
            sha256="a" * 64,
            footer_sha256="b" * 64,
            num_samples=SHARD_SAMPLES,
            num_rows=SHARD_SAMPLES * views[table],
            row_groups=ShardLayout(SHARD_SAMPLES, views[table]).rows,
            statistics=statistics,
        )
        for table in TABLES
    }
    return lambda table, shard: records[table].model_copy(update={"shard": shard}).sealed()


def folder_figures(root: Path) -> dict[str, float]:
    """Measure listing a folder of shards, and asking whether a shard is committed."""
    count = 10_000
    identity = Shape("shared", SHARD_SAMPLES * count).identity()
    plan = ShardPlan(
        num_rows=identity.num_rows, samples_per_shard=SHARD_SAMPLES, batch_tokens=1, head_rows=1, views_per_forward=1
    )
    folder = CacheFolder(root)
    folder.begin(identity, plan, ("plain",))
    record_of, asked = made_up_records(folder.plan_document), 500
    for shard in range(count):
        path = folder.shard_path("pairs", shard)
        path.touch()
        path.with_suffix(".json").touch()
    for shard in range(asked):
        path, record = folder.shard_path("pairs", shard), record_of("pairs", shard)
        with path.open("wb") as file:
            file.truncate(record.size)
        path.with_suffix(".json").write_text(record.model_dump_json())
    return {
        "listing_us_per_shard": _seconds(lambda: folder.listed("pairs")) * 1e6 / count,
        "resume_us_per_shard": _seconds(lambda: [folder.is_committed("pairs", s) for s in range(asked)]) * 1e6 / asked,
    }


def verify_figures(root: Path, options: Options) -> dict[str, float]:
    """Measure `verify` with and without `--deep` on a cache of top-k rows, by processor time of one core.

    `verify_deep_gb_per_s` is by the clock, on all cores and a larger cache; the start of its processes counts.
    """
    num_samples = min(options.rows, 512)
    num_bytes = _write_top_k(root / "small", num_samples)
    seconds = {
        name: _seconds(partial(verify, root / "small", deep))
        for name, deep in (("verify", False), ("verify_deep", True))
    }
    figures = {f"{name}_gb_per_s_per_core": num_bytes / found / 1e9 for name, found in seconds.items()}
    num_bytes = _write_top_k(root / "large", LARGER * num_samples)
    start_s = perf_counter()
    assert verify(root / "large", deep=True).ok
    return figures | {"verify_deep_gb_per_s": num_bytes / (perf_counter() - start_s) / 1e9}


def _write_top_k(root: Path, num_samples: int) -> int:
    """Write a cache of top-k rows and return the bytes of its shards."""
    write_cache(root, Shape("shared", num_samples))
    return sum(path.stat().st_size for path in root.rglob("*.parquet"))


def _seconds(work: Callable[[], object]) -> float:
    start_s = process_time()
    work()
    return process_time() - start_s
