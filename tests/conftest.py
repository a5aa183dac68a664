"""Fixtures that several test folders use. Only they import torch: who hands out the tests to processes needs none."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from helpers import fresh

if TYPE_CHECKING:
    from helpers.made import Built
    from tide_cache.demo.vocabularies import Vocabularies

# A busy machine makes drawing slow, which is no fault of the code.
settings.register_profile(
    "tide-cache",
    deadline=None,
    max_examples=100 if fresh.IS_FULL else 25,  # where a test does not say
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tide-cache")

# It also starts one process of a run long after another; nobody waits so long when all goes well.
os.environ.setdefault("TIDE_CACHE_MEET_S", "600")

# A shell that starts the tests in the background has them ignore an interrupt, and with them all that they start.
for number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

gc.disable()  # while much is imported, nearly all of which stays; from the end of the collection on it runs

ROOT = Path(__file__).resolve().parent.parent

TOGETHER = ("cli", "faults", "pairing", "services")
"""Folders whose files share what takes seconds to make: one process tests each of them."""

LONGEST_FIRST = (
    "cli",
    "building/test_executors_ray.py",
    "training/test_capture_parity.py",
    "faults",
    "training/test_world_sizes.py",
    "hub",
    "experiments/test_experiment.py",
    "benchmarks",
    "services",
    "building",
    "pairing",
    "test_packaging.py",
    "demo/test_demo.py",
)
"""Files and folders; else one core would wait for the other's last one."""


def pytest_collection_finish() -> None:
    """Let the garbage collector run, but never look through all that was imported."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}

    def place_of(item: pytest.Item) -> int:
        return min(places.get(path, len(places)) for path in (item.path, *item.path.parents))

    items.sort(key=place_of)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out files, and the folders of `TOGETHER` as a whole."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            folder = Path(file).relative_to("tests").parts[0] if file.startswith("tests/") else ""
            return folder if folder in TOGETHER else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def process_as_at_first() -> None:
    """Let no test be started in what another has left: variables, and how many threads torch uses."""
    fresh.restore_variables()
    torch = sys.modules.get("torch")
    if (
        torch and torch.get_num_threads() != 1
    ):  # more wait for each other, at full speed: twice the time for tiny models
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with tokenizers, data and golden numbers; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared material at {folder}; set TIDE_CACHE_SHARED")
    return folder


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    """Two small tokenizers."""
    from tide_cache.demo.vocabularies import train_vocabularies

    return train_vocabularies(tmp_path_factory.mktemp("tokenizers"), seed=0)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty generated conversations."""
    from tide_cache.demo.tasks import make_tasks, write_tasks

    path = tmp_path_factory.mktemp("corpus") / "tasks.jsonl"
    write_tasks(path, make_tasks(40, seed=7))
    return path


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, vocabularies: Vocabularies) -> Path:
    """A checkpoint with random weights in the second tokenizer."""
    from helpers import made

    return made.tiny_teacher(tmp_path_factory.mktemp("teacher"), vocabularies.second)


@pytest.fixture(scope="session")
def build_values(corpus_file: Path, tiny_teacher: Path, vocabularies: Vocabularies) -> Callable[..., dict[str, Any]]:
    """Values of a build run file; `build_values(out, pipeline, **changes)` with dotted names for changes."""

    def make(out: Path, pipeline: str = "shared", **changes: Any) -> dict[str, Any]:
        tokenizer = vocabularies.second if pipeline == "shared" else vocabularies.first
        values: dict[str, Any] = {
            "corpus": {"spec": str(corpus_file)},
            "teacher": {"model": str(tiny_teacher), "block_size": 8, "max_length": 64, "dtype": "float32"},
            "student": {"tokenizer": {"path": str(tokenizer)}, "max_length": 64, "block_size": 8},
            "views": {"num_views": 4},
            "signals": {"top_k": 16},
            "build": {"out": str(out), "samples_per_shard": 16, "batch_tokens": 1024},
        }
        for name, value in changes.items():
            section, _, key = name.partition("__")
            values[section][key] = value
        return values

    return make


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory, build_values: Callable[..., dict[str, Any]]) -> Path:
    """A cache for students with the tokenizer of `tiny_teacher`, which can be one too; tests only read it."""
    from tide_cache.building.driver import build_cache
    from tide_cache.config.build import BuildRun

    out = tmp_path_factory.mktemp("tiny") / "cache"
    build_cache(BuildRun.model_validate(build_values(out, signals__temperatures=(1.0, 2.0))))
    return out


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A small cache from a teacher with random weights."""
    from helpers import made

    return made.built(tmp_path_factory.mktemp("built"))


@pytest.fixture
def forking() -> Iterator[None]:
    """Python processes that the code under test starts are forked, and need not import."""
    with fresh.forking():
        yield
