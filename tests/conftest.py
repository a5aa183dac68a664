"""Fixtures that several test folders use."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with tokenizers, data and golden numbers; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared material at {folder}; set TIDE_CACHE_SHARED")
    return folder
