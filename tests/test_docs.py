"""The run files in the docs and examples are valid, and the Python in the docs runs."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

import tide_cache
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


def test_the_python_api_page_runs(tiny_cache, tiny_teacher, tmp_path, monkeypatch, capsys):
    """From top to bottom, as a reader would, with the names that it gives to cache and checkpoint."""
    (tmp_path / "cache").symlink_to(tiny_cache)
    (tmp_path / "checkpoint").symlink_to(tiny_teacher)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    page = (ROOT / "docs" / "python-api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    named = set(re.findall(r"`(\w+)`", page))
    assert {n for n in tide_cache.__all__ if not n.endswith("Error")} - {"Interrupted", "__version__"} <= named
    names = {"torch": torch}
    for block in blocks:
        exec(block, names)
    assert names["loss"].item() > 0
    assert sum(row[1] for row in names["by_time"].fetchall()) > 0
    assert "sample_id" in capsys.readouterr().out
