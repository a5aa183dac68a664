"""Caches to test with; samples and signals come from the examples of the shard tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.cache_examples import Builder


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "cache")


@pytest.fixture
def cache(builder: Builder) -> Path:
    """A complete cache."""
    builder.finish()
    return builder.root


@pytest.fixture
def flip() -> Callable[[Path, int], None]:
    def flip_byte(path: Path, position: int) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 0x20
        path.write_bytes(data)

    return flip_byte
