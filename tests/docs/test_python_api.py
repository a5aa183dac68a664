"""The page on Python and the README's snippet run as a reader would run them, and the page names all that is public."""

import re

import torch

import tide_cache
from helpers.pages import ROOT, blocks_of

PAGE = ROOT / "docs" / "python-api.md"


def test_the_python_api_page_runs(tiny_cache, tiny_teacher, tmp_path, monkeypatch, capsys):
    """With the names that it gives to cache and checkpoint."""
    (tmp_path / "cache").symlink_to(tiny_cache)
    (tmp_path / "checkpoint").symlink_to(tiny_teacher)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    blocks = [block.text for block in blocks_of(PAGE) if block.language == "python"]
    assert len(blocks) == 5
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert {n for n in tide_cache.__all__ if not n.endswith("Error")} - {"Interrupted", "__version__"} <= named
    names = {"torch": torch}
    for block in blocks:
        exec(block, names)
    assert names["loss"].item() > 0
    assert sum(row[1] for row in names["by_time"].fetchall()) > 0
    assert "sample_id" in capsys.readouterr().out


def test_the_readmes_snippet_runs(tiny_cache, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").symlink_to(tiny_cache)
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks_of(ROOT / "README.md") if block.language == "python")
    exec(block.text, {})
    assert len(capsys.readouterr().out.splitlines()) == 2
