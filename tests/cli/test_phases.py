"""Slow parts of the work say what they do once they have lasted; quick ones say nothing."""

import hashlib
import re
import time

import pytest

from tide_cache.modeling.fingerprint import checkpoint_fingerprint
from tide_cache.progress import Phase, doing, listen
from tide_cache_cli import phases
from tide_cache_cli.phases import PhasePrinter, describe

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} "
LIMIT_S = 60


@pytest.fixture
def printer(monkeypatch):
    """Have phases shown, and none be too quick for it."""
    monkeypatch.setattr(phases, "PATIENCE_S", 0.0)
    for name in ("TIDE_CACHE_LOG", "RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    listen(PhasePrinter())
    yield
    listen(None)


def printed(capsys, wanted):
    """Return what is on stderr, as soon as it holds some text."""
    found, until_s = "", time.monotonic() + LIMIT_S
    while wanted not in found and time.monotonic() < until_s:
        found += capsys.readouterr().err
        time.sleep(0.001)
    return found


def test_what_lasts_says_what_it_does_and_how_far_it_is(printer, monkeypatch, capsys):
    monkeypatch.setattr(phases, "SECONDS_BETWEEN_LINES", 0.001)
    with doing("Hashing weights of teacher", 2_100_000_000) as phase:
        first = printed(capsys, "\n")
        phase.advance(1_200_000_000)
        later = printed(capsys, "1.2 GB")
    assert re.match(STAMP + r"Hashing weights of teacher \(2\.1 GB\) \.\.\.\n", first)
    assert "Hashing weights of teacher (1.2 GB of 2.1 GB) ... " in later


def test_what_is_quick_says_nothing(printer, monkeypatch, capsys):
    monkeypatch.setattr(phases, "PATIENCE_S", LIMIT_S)
    with doing("Reading corpus"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"TIDE_CACHE_LOG": "quiet"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
    ],
    ids=str,
)
def test_quiet_commands_and_other_ranks_say_nothing(printer, monkeypatch, capsys, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with doing("Reading corpus"):
        time.sleep(0.01)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes_away(printer, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(phases, "SECONDS_BETWEEN_DRAWINGS", 0.001)
    monkeypatch.setattr(phases.sys.stderr, "isatty", lambda: True)
    with doing("Loading weights", 3_000_000) as phase:
        phase.reach(1_000_000, 3_000_000)
        assert "Loading weights (1.0 MB of 3.0 MB)" in printed(capsys, "1.0 MB of")
    assert capsys.readouterr().err.endswith("\x1b[2K")  # the line is wiped


def test_an_error_ends_its_phase(printer, capsys):
    with pytest.raises(ValueError, match="odd"), doing("Reading corpus"):
        raise ValueError("odd")
    _ = capsys.readouterr()
    time.sleep(0.01)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        (Phase("Loading"), "Loading"),
        (Phase("Reading", unit="rows", done=1200), "Reading (1,200 rows)"),
        (Phase("Spelling", 5, "ids"), "Spelling (5 ids)"),
        (Phase("Spelling", 5, "ids", 2), "Spelling (2 of 5 ids)"),
    ],
)
def test_words(phase, text):
    assert describe(phase) == text


def test_hashing_counts_its_bytes_and_gives_what_it_always_gave(tmp_path):
    """Cache ids depend on this hash."""
    data = b"weights" * 1_000_000
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    heard = []

    class Ear:
        def begin(self, phase):
            heard.append(phase)

        def end(self, phase):
            heard.append(phase.done)

        def hear(self, text):
            raise AssertionError(text)

    listen(Ear())
    try:
        found = checkpoint_fingerprint(tmp_path)
    finally:
        listen(None)
    of_file = f"model.safetensors:{hashlib.sha256(data).hexdigest()}\n"
    assert found["weights_sha256"] == hashlib.sha256(of_file.encode()).hexdigest()
    assert (heard[0].total, heard[1]) == (len(data), len(data))
