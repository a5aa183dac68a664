"""A small cache in memory, and what its records are."""

import pytest

from helpers.memory_cache import MemoryCache


@pytest.fixture(scope="session")
def cache() -> MemoryCache:
    """A complete cache; tests never change it."""
    return MemoryCache.build()
