"""How much is printed: `--quiet`, `--verbose`, or `TIDE_CACHE_LOG`, which child processes inherit."""

import logging
import os
import sys
from typing import Literal, get_args

from tide_cache.errors import RunFileError
from tide_cache.progress import listen

from .console import stamp
from .phases import PhasePrinter

VARIABLE = "TIDE_CACHE_LOG"

_LIBRARIES = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY")
"""Variables that two libraries with their own loggers read on import."""


Verbosity = Literal["quiet", "normal", "verbose"]
"""quiet: results and errors. normal: progress and hints too. verbose: what libraries log as well."""


def choose_verbosity(quiet: bool, verbose: bool) -> None:
    """Set how much this process and its children print; options win over the variable.

    Raises:
        RunFileError: Both options are given, or the variable says something else.
    """
    if quiet and verbose:
        raise RunFileError("found --quiet and --verbose; expected one of them")
    said = "quiet" if quiet else "verbose" if verbose else os.environ.get(VARIABLE) or "normal"
    if said not in get_args(Verbosity):
        raise RunFileError(f"{VARIABLE}: found {said!r}; expected one of {', '.join(get_args(Verbosity))}")
    os.environ[VARIABLE] = said
    listen(None if said == "quiet" else PhasePrinter())
    if said == "normal":
        return
    for name in _LIBRARIES:
        os.environ.setdefault(name, "error" if said == "quiet" else "info")
    logging.captureWarnings(True)  # warnings are what libraries say, too
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(level=logging.ERROR if said == "quiet" else logging.INFO, handlers=[handler])


class _Line(logging.Formatter):
    """A library's message on a line like ours, with its level and the name of its logger."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{stamp()}{record.levelname.lower()}: {record.name}: {super().format(record)}"
