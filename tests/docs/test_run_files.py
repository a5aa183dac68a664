"""The run files in the docs and examples are valid, and the README names no placeholder."""

import re
import tomllib
from pathlib import Path

import pytest

from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))
IN_DOCS = [
    block
    for page in ("run-files.md", "teachers.md")
    for block in re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    if "[train]" in block or "[build]" in block
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_run_files_are_valid(path):
    load_run_file(BuildRun if "build" in tomllib.loads(path.read_text()) else TrainRun, path)


@pytest.mark.parametrize("text", IN_DOCS)
def test_run_files_in_the_docs_are_valid(text, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    load_run_file(BuildRun if "[build]" in text else TrainRun, path)


def test_there_are_run_files_to_check():
    assert len(EXAMPLES) == 5
    assert len(IN_DOCS) == 4
