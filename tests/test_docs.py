"""The run files in the docs and examples are valid, and the Python in the docs runs."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import typer

import tide_cache
from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.sweep import SweepRun
from tide_cache.config.train import TrainRun
from tide_cache_cli.main import app

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))
IN_DOCS = [
    block
    for page in ("run-files.md", "teachers.md")
    for block in re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    if "[train]" in block or "[build]" in block
]
PIPELINES = (ROOT / "docs" / "pipelines.md").read_text()
COMMANDS = re.findall(r"^tide-cache .*", PIPELINES, re.MULTILINE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_example_run_files_are_valid(path):
    load_run_file(BuildRun if "build" in tomllib.loads(path.read_text()) else TrainRun, path)


@pytest.mark.parametrize("text", IN_DOCS)
def test_run_files_in_the_docs_are_valid(text, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    load_run_file(BuildRun if "[build]" in text else TrainRun, path)


def test_there_are_run_files_to_check():
    assert len(EXAMPLES) == 10
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


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_pipelines_page_are_understood_and_their_files_are_there(line):
    name, *options = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, list(options))
    files = [option for option in options if option.startswith("examples/")]
    assert all((ROOT / file).is_file() for file in files)


def test_the_arms_of_the_pipelines_page_are_arms_of_a_sweep(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", PIPELINES, re.DOTALL)
    (tmp_path / "sweep.toml").write_text((ROOT / "examples/pipeline-a/student.toml").read_text() + text)
    assert [arm.name for arm in load_run_file(SweepRun, tmp_path / "sweep.toml").sweep.arm] == ["four views", "soft"]
    assert len(COMMANDS) == 8
