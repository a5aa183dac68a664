"""Workers as processes, fast: this script imports everything once, and forks a worker for every line it is told.

Run as `python fork_server.py`; reads one JSON document a line and answers with one. `{"start": {...}}` forks a worker
and gives its pid, `{"wait": pid}` its exit status, negative for a signal.
"""

import json
import mmap
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.campaign import encode_shards, work
from tide_cache.errors import TideCacheError

MESSAGE_BYTES = 4096
CRASHED = 70


def worker(root: str, message_file: str, order: int, is_held: bool) -> None:
    """Publish the small cache, and exit as the command line would; the message goes out without a system call."""
    with open(message_file, "w+b") as file:
        file.truncate(MESSAGE_BYTES)
        message = mmap.mmap(file.fileno(), MESSAGE_BYTES)
    status = 0
    if is_held:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        work(Path(root), SHARDS, order=order)
    except TideCacheError as error:
        text, status = str(error), error.exit_code
    except BaseException:
        text, status = traceback.format_exc(), CRASHED
    if status:
        data = text.encode()[:MESSAGE_BYTES]
        message[: len(data)] = data
    os._exit(status)


SHARDS = encode_shards()

if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            pid = os.fork()
            if pid == 0:
                worker(**asked["start"])
            answer = {"pid": pid}
        else:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])}
        print(json.dumps(answer), flush=True)
