"""A build of five shards, and what it leaves when nothing disturbs it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """Hash every file below a folder."""

    def hashes(folder: Path) -> dict[str, str]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return hashes


@pytest.fixture(scope="session")
def run_in(build_values: Callable[..., dict[str, Any]]) -> Callable[..., BuildRun]:
    """Five shards of eight samples, in small batches."""

    def make(folder: Path, **changes: Any) -> BuildRun:
        values = {"build__samples_per_shard": 8, "build__batch_tokens": 256, **changes}
        return BuildRun.model_validate(build_values(folder, **values))

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run_in: Callable[..., BuildRun]) -> Path:
    """The cache of that run, built in this process."""
    torch.set_num_threads(1)  # workers share the cores, and sums of floats depend on how many threads add them up
    folder = tmp_path_factory.mktemp("undisturbed") / "cache"
    build_cache(run_in(folder))
    return folder


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For workers too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
