"""What a remote worker answers when it gets a shard, as plain values that any channel can carry."""

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tide_cache import errors
from tide_cache.building.shard import BuiltShard
from tide_cache.errors import TideCacheError

Answer = dict[str, Any]


def answer_of(build: Callable[[], BuiltShard]) -> Answer:
    """Build a shard, and return the result as plain values.

    Args:
        build: Builds it.
    """
    try:
        built = build()
    except TideCacheError as error:
        return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    except Exception:
        return {"fault": traceback.format_exc()}
    return {"shard": built.shard, "num_bytes": built.num_bytes, "num_samples": built.num_samples}


def attempted(build: "Callable[[], Future[BuiltShard]]") -> "Future[BuiltShard]":
    """Begin to build a shard; the result also carries what is raised at once.

    Args:
        build: Begins it.
    """
    try:
        return build()
    except Exception as error:
        failed: Future[BuiltShard] = Future()
        failed.set_exception(error)
        return failed


def built_of(answer: Answer) -> BuiltShard:
    """Read an answer.

    Args:
        answer: From `answer_of`.

    Raises:
        TideCacheError: What the worker raised, with its own message and exit code.
        RuntimeError: A fault of ours, with the worker's traceback.
    """
    if "fault" in answer:
        raise RuntimeError(f"a worker failed:\n{answer['fault']}")
    if "error" in answer:
        kind = getattr(errors, answer["error"], TideCacheError)
        error: TideCacheError = kind(answer["message"])
        error.exit_code = answer["exit_code"]
        raise error
    return BuiltShard(answer["shard"], answer["num_bytes"], answer["num_samples"])
