"""Makes `cache-v1`, the cache that every later release must still read; run once, then the bytes are committed.

python tests/golden/make_cache.py tests/golden/cache-v1
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.cache_examples import IDENTITY, PLAN  # noqa: E402, its folder must be on the path
from helpers.shard_examples import encode_both  # noqa: E402
from tide_cache.manifest import CacheFolder  # noqa: E402
from tide_cache.records import ViewRecord  # noqa: E402

NUM_SAMPLES = 4
FIELDS = {
    "pair": ("sample_id", "student_ids_L", "is_supervised_L", "teacher_ids_M", "chunks_C4"),
    "view": ("sample_id", "view", "t", "is_student_masked_L", "is_teacher_masked_M"),
    "signal": ("truth_logprobs_N", "is_top1_N", "topk"),
    "topk": ("rows_R", "counts_R", "ids_E", "logprobs_E", "log_tail_RT", "log_partition_RT"),
}
"""What a record of format v1 with truth and topk holds, by name; later releases may add fields."""


def digest(records: Sequence[ViewRecord]) -> str:
    """One hash of everything that a reader gives for these records."""
    hasher = hashlib.sha256()
    for record in records:
        for part in ("pair", "view", "signal"):
            for piece in _pieces(getattr(record, part), part):
                hasher.update(piece)
    return hasher.hexdigest()


def _pieces(value: Any, part: str) -> Iterator[bytes]:
    assert is_dataclass(value)
    assert {field.name for field in fields(value)} >= set(FIELDS[part])
    for name in FIELDS[part]:
        found = getattr(value, name)
        if name == "topk":
            yield from _pieces(found, name)
        elif isinstance(found, np.ndarray):
            yield f"{name} {found.dtype} {found.shape}\n".encode() + found.tobytes()
        else:
            yield f"{name} {found!r}\n".encode()


def main(root: Path) -> None:
    """Write the cache."""
    identity = IDENTITY.model_copy(update={"num_rows": NUM_SAMPLES})
    plan = PLAN.model_copy(update={"num_rows": NUM_SAMPLES, "samples_per_shard": NUM_SAMPLES})
    folder = CacheFolder(root)
    folder.begin(identity, plan, ["plain"])
    shards = encode_both(1, NUM_SAMPLES, identity.shard_rules, folder.header("pairs", 0), max_chunks=3)
    for encoded in shards:
        folder.commit(encoded, {"samples": encoded.num_samples})
    folder.finish(["plain"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
