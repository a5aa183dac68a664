"""The run files in the docs and examples are valid."""

import tomllib

import pytest
from pages import PAGES, ROOT, blocks_of

from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun

EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))
WHOLE = [
    pytest.param(block.text, id=block.id)
    for page in PAGES
    for block in blocks_of(page)
    if block.language.startswith("toml") and ("[train]" in block.text or "[build]" in block.text)
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_run_files_are_valid(path):
    load_run_file(BuildRun if "build" in tomllib.loads(path.read_text()) else TrainRun, path)


@pytest.mark.parametrize("text", WHOLE)
def test_run_files_in_the_docs_are_valid(text, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    load_run_file(BuildRun if "[build]" in text else TrainRun, path)


def test_there_are_run_files_to_check():
    assert len(EXAMPLES) == 5
    assert len(WHOLE) == 8
