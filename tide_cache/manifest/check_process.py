"""The process that checks shards of a cache: `python -m` this file; one line of JSON for each order and each answer."""

import json
import os
import sys
from typing import Any

from tide_cache.errors import UnreadableError
from tide_cache.locations import cache_path
from tide_cache.manifest.commit import CommitRecord
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.shard_check import ShardCheck
from tide_cache.shards import files_of


def serve() -> None:
    """Check the shards whose records stdin names, until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    task = json.loads(sys.stdin.readline())
    root = cache_path(task["root"])
    check = ShardCheck(root, CacheIdentity.model_validate_json(task["identity"]), True, files_of(root))
    answer: dict[str, Any]
    for line in sys.stdin:
        of_shard, of_pairs = json.loads(line)
        record = CommitRecord.model_validate_json(of_shard)
        pairs = None if of_pairs is None else CommitRecord.model_validate_json(of_pairs)
        try:
            answer = {"problems": [problem.model_dump(mode="json") for problem in check.problems(record, pairs)]}
        except UnreadableError as error:
            answer = {"unreadable": str(error)}
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    serve()
