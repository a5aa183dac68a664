"""What Ray says when a cluster cannot be joined: half of it is in the error, half on the process's stderr."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_LOG_PREFIX = re.compile(r"^\[[^\]]*\]\s+\S+\.(?:cc|h|py):\d+:\s*")
MOST_LINES = 3


@contextmanager
def heard_stderr() -> Iterator[list[str]]:
    """Collect what is written to descriptor 2, by libraries in C++ too; it is shown afterwards unless an error came.

    Yields:
        The lines, filled on the way out.
    """
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        except BaseException:
            lines += _written(file.fileno())
            raise
        else:
            for line in _written(file.fileno()):
                os.write(kept, f"{line}\n".encode())
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def refusal(error: BaseException, lines: list[str]) -> str:
    """Compose why a cluster cannot be joined, in Ray's own words, and the way out.

    Args:
        error: What Ray raised.
        lines: What it wrote to stderr meanwhile; it repeats itself.
    """
    words = list(dict.fromkeys(_LOG_PREFIX.sub("", line).strip() for line in lines))
    said = [" ".join(str(error).split()), *[word for word in words if word][-MOST_LINES:]]
    text = "; ".join(word.rstrip(".") for word in said if word)
    if re.search(r"token|unauthenticated", text, re.IGNORECASE):
        return f"{text}. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the nodes of the cluster have them."
    if re.search(r"version", text, re.IGNORECASE):
        return f"{text}. Use the versions of Ray and Python that its nodes have."
    return f"{text}. Look at the address, and at the head's own logs."


def _written(descriptor: int) -> list[str]:
    sys.stderr.flush()
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace").splitlines()
