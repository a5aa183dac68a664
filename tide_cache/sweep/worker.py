"""One job of a sweep in a process of its own: the job comes as a line on stdin, what happens is the exit code.

The end of stdin is the end of the sweep's own process: the job then stops as if by SIGTERM, with a checkpoint.
"""

import json
import os
import signal
import sys
import threading

from tide_cache.errors import TideCacheError
from tide_cache.sweep.arms import Job


def main() -> int:
    """Run the job."""
    job = Job.model_validate(json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    from tide_cache.sweep.job import run_job

    try:
        run_job(job)
    except TideCacheError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _stop_with_the_sweep() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock this thread would hold when the interpreter ends
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
