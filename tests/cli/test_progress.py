"""Progress where nobody watches a terminal: few lines, with rate, time left and bytes."""

import re

import pytest

from tide_cache.launchers import PAIRS, PLAIN, SLURM
from tide_cache_cli import progress
from tide_cache_cli.progress import ProgressReport


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now_s = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now_s)
    return Clock


def unstamped(text):
    """Return the lines without the time with which each must begin."""
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} "
    assert all(re.match(stamp, line) for line in text.splitlines())
    return [re.sub(stamp, "", line) for line in text.splitlines()]


def test_lines_come_every_few_seconds_and_the_last_one_always(clock, capsys):
    with ProgressReport("build", "views") as report:
        for done in range(0, 101):
            report.update(done, 100, f"{done} B written")
            clock.now_s += 0.125
    assert unstamped(capsys.readouterr().err) == [
        "build: 0 of 100 views, 0 B written",
        "build: 40 of 100 views, 8/s, 40 B written, 0:00:08 left",
        "build: 80 of 100 views, 8/s, 80 B written, 0:00:02 left",
        "build: 100 of 100 views, 8/s, 100 B written",
    ]


def test_slow_ones_show_how_long_one_takes_from_the_first_on(clock, capsys):
    with ProgressReport("train", "steps") as report:
        report.since(0, 30.0)
        report.update(1, 3, "ce 5.0")
    assert unstamped(capsys.readouterr().err) == ["train: 1 of 3 steps, 30.0 s/step, ce 5.0, 0:01:00 left"]


def test_bytes_are_shown_as_sizes(clock, capsys):
    with ProgressReport("verify", "bytes") as report:
        report.update(0, 3_000_000)
        clock.now_s += 2
        report.update(3_000_000, 3_000_000)
    assert unstamped(capsys.readouterr().err) == [
        "verify: 0 B of 3.0 MB",
        "verify: 3.0 MB of 3.0 MB, 1.5 MB/s",
    ]


def test_stdout_stays_empty(clock, capsys):
    with ProgressReport("train", "steps") as report:
        report.update(1, 2)
    assert capsys.readouterr().out == ""


def test_a_narrow_terminal_still_shows_the_time_left(monkeypatch, capsys):
    """The text gives way, on one line; the time does not."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with ProgressReport("build", "views") as report:
        report.update(9_000, 25_600, "shard 9 of 400, 294.3 kB written")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    line = plain.replace("\r", "\n").split("\n")[-2].rstrip()
    assert line.startswith("build ")
    assert " 9,000 of 25,600 views" in line
    assert line.endswith("… -:--:-- left")
    assert len(line) <= 60


@pytest.mark.parametrize("names", PAIRS)
def test_a_process_of_several_says_which_it_is(monkeypatch, capsys, names):
    for name in (*PLAIN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(names, ("3", "8"), strict=True):
        monkeypatch.setenv(name, value)
    with ProgressReport("train", "steps") as report:
        report.update(1, 2)
    assert unstamped(capsys.readouterr().err) == ["rank 3/8 train: 1 of 2 steps"]
