"""`report` tells a cache from a run, writes one page, and refuses what it cannot show; `inspect` on any terminal."""

import json
import shutil
import sys

import pytest

from tide_cache.reporting.page import GENERATOR


@pytest.fixture
def student(student_run, call):
    """The run of a student with an evaluation in its folder."""
    out = student_run.out / "eval.json"
    if not out.exists():
        options = ("--dataset", "held-out.jsonl", "--max-length", "64", "--limit", "3", "--out", out)
        assert call("eval", student_run.out / "model", *options).exit_code == 0
    return student_run.out


def test_a_cache_becomes_a_page_with_the_figures_of_inspect(call, tmp_path):
    page = tmp_path / "page.html"
    options = ("--out", page, "--tokenizer", "vocab/first", "--teacher-tokenizer", "vocab/second", "--json")
    result = call("report", "cache", *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["kind"] == "cache"
    assert found["inspection"] == json.loads(call("inspect", "cache", "--json").stdout)
    assert [view["t"] for view in found["views"]] == sorted(view["t"] for view in found["views"])
    text = page.read_text()
    assert GENERATOR in text
    assert "&lt;|assistant|&gt;" in text
    assert "row groups" in result.stderr
    again = call("report", "cache", "--out", page, "--view", "1")
    assert again.exit_code == 0, "our own page is written over"
    assert "add --tokenizer" in again.stderr
    assert str(page) in "".join(again.stdout.split())


def test_a_run_becomes_a_page_named_after_it(student, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("report", student)
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "report-student.html").read_text()
    assert "ce + 0.5 calm" in text
    assert "held-out.jsonl" in text


def test_runs_are_compared(workshop, student, call, tmp_path):
    page = tmp_path / "both.html"
    result = call("report", "--compare", student, workshop.root / "teacher", "--out", page, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [arm["name"] for arm in found["arms"]] == ["ce + 0.5 calm", "ce"]
    assert found["result"]["measure"].startswith("NLL on the training views"), "the teacher has no evaluation"
    assert "2 runs compared" in page.read_text()


def test_what_cannot_be_shown_is_refused_with_the_way_out(workshop, call, tmp_path):
    def refusal(code, *arguments):
        result = call("report", *arguments)
        assert result.exit_code == code, result.stderr
        assert result.stdout == ""
        return " ".join(result.stderr.split())

    (tmp_path / "other.html").write_text("mine")
    part = tmp_path / "part"
    shutil.copytree(workshop.cache, part)
    (part / "manifest.json").unlink()
    assert "neither a cache (manifest.json or plan.json) nor a run" in refusal(3, tmp_path)
    assert "the build has not finished" in (text := refusal(3, part, "--out", tmp_path / "new.html"))
    assert "it continues where it stopped" in text
    assert not (tmp_path / "new.html").exists()
    assert "not a page of tide-cache" in refusal(2, "cache", "--out", tmp_path / "other.html")
    assert "which holds its own files only" in refusal(2, "cache", "--out", "cache/report.html")
    assert "found 1 run, expected at least 2" in refusal(2, "--compare", "teacher")
    assert "add --compare" in refusal(2, "teacher", "cache")
    assert "cache: found no training run" in refusal(2, "--compare", "teacher", "cache")
    assert "found a run twice" in refusal(2, "--compare", "teacher", "teacher")
    assert "--tokenizer: found with a run" in refusal(2, "teacher", "--tokenizer", "vocab/first")
    assert "expected 0 to 47" in refusal(2, "cache", "--view", "48", "--out", tmp_path / "new.html")
    assert (tmp_path / "other.html").read_text() == "mine"


def test_without_matplotlib_one_error_says_what_to_install(call, tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("matplotlib", "tide_cache.reporting.plots", "tide_cache.reporting.cache_page")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call("report", "cache", "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "error: the pages are drawn with matplotlib: pip install 'tide-cache[report]'" in result.stderr
    assert not (tmp_path / "page.html").exists()


def test_inspect_draws_sparklines_and_the_lengths_of_chunks(call):
    text = call("inspect", "cache").stdout
    for part in ("Over diffusion time t, plain", "Tokens of a chunk, from 24 of 24 samples", "confidence"):
        assert part in text
    assert any(bar in text for bar in "▁▂▃▄▅▆▇█")


def test_a_view_shows_what_the_teacher_would_write(call):
    shown = call("inspect", "cache", "--view", "3", "--tokenizer", "vocab/first", "--teacher-tokenizer", "vocab/second")
    assert shown.exit_code == 0, shown.stderr
    assert "most likely, by the teacher" in shown.stdout
    view = json.loads(call("inspect", "cache", "--view", "3", "--json").stdout)
    assert {"text", "segments", "chunks", "signal_pass"} <= set(view)
    refused = call("inspect", "cache", "--tokenizer", "vocab/first")
    assert refused.exit_code == 2
    assert "--tokenizer: found no --view with it" in refused.stderr


def test_inspect_speaks_to_a_terminal_that_knows_ascii_alone(workshop, installed):
    for options in ((), ("--view", "3", "--tokenizer", "vocab/first")):
        done = installed("inspect", "cache", *options, cwd=workshop.root, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
    assert "[[" in done.stdout
