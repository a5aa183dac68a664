"""A small cache in memory, and what its records are."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "manifest"), str(HERE.parent.parent / "shards")]

from memory_cache import MemoryCache  # noqa: E402, its folder must be on the path


@pytest.fixture(scope="session")
def cache() -> MemoryCache:
    """A complete cache; tests never change it."""
    return MemoryCache.build()
