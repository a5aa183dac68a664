"""The command, what it writes, and that the loops compared with find the right chunks."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import build
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.python_loop import bare_loop, reference_loop
from benchmarks.timing import Timings
from tide_cache.demo.vocabularies import Vocabularies
from tide_cache.pairing import align_bytes

cuts = st.lists(st.integers(1, 19), max_size=12).map(lambda ends: sorted({*ends, 20}))


@given(cuts, cuts)
def test_both_loops_find_the_chunks_of_equal_bytes(teacher_ends, student_ends):
    data = bytes(range(65, 85))
    sides = [[data[a:b] for a, b in zip([0, *ends], ends, strict=False)] for ends in (teacher_ends, student_ends)]
    want = [tuple(row) for row in align_bytes(teacher_ends, student_ends).tolist()]
    assert bare_loop(*sides) == want
    assert reference_loop(*sides, [(b"<s>",)], [(b"<t>", b"\n")]) == want


def test_the_reference_loop_pairs_special_tokens():
    """And, like the reference, drops the chunk afterwards unless both are spelled alike."""
    teacher, student = [b"<s>", b"ab", b"<e>"], [b"<s>", b"a", b"b", b"<t>", b"\n"]
    specials = [(b"<s>",), (b"<e>",)], [(b"<s>",), (b"<t>", b"\n")]
    assert reference_loop(teacher, student, *specials) == [(0, 1, 0, 1), (1, 2, 1, 3)]


def test_ratios_are_within_rounds(monkeypatch: pytest.MonkeyPatch):
    """A load that doubles one round's times leaves the ratio as it is."""
    times = iter(np.cumsum([0, 4, 0, 1, 0, 8, 0, 2, 0, 4, 0, 1]).tolist())
    monkeypatch.setattr("benchmarks.timing.perf_counter", lambda: next(times))
    timings = Timings({"slow": lambda: None, "fast": lambda: None}, 3)
    assert timings.ratio("slow", "fast") == 4
    assert timings.rate("slow", 8) == 2


def test_pairing_writes_figures_machine_and_command(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "results" / "pairing.json"
    arguments = ["pairing", "--rows", "30", "--repeats", "1", "--json", str(file)]
    assert main(arguments) == 0
    record = json.loads(file.read_text())
    assert list(record) == ["figures", "machine", "command"]
    figures = record["figures"]
    names = ["align", "python_loop", "tokenise", "pair"]
    assert {f"{name}_samples_per_s" for name in names} | {"align_ratio", "pair_ratio"} <= set(figures)
    assert all(value > 0 for value in figures.values())
    want = figures["align_samples_per_s"] / figures["python_loop_samples_per_s"]
    assert figures["align_ratio"] == pytest.approx(want)
    assert figures["pair_ratio"] == pytest.approx(figures["pair_samples_per_s"] / figures["tokenise_samples_per_s"])
    assert set(record["machine"]) == {"cpu_model", "cores", "python", "torch", "platform"}
    assert record["command"] == " ".join(["python -m benchmarks", *arguments])
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)


def test_missing_material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("TIDE_CACHE_SHARED", str(tmp_path))
    assert main(["pairing"]) == 2
    assert f"{tmp_path}/tokenizers/qwen is missing; set TIDE_CACHE_SHARED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["nothing"], "invalid choice: 'nothing' (choose from"),
        ([], "the following arguments are required: NAME"),
        (["pairing", "--rows", "0"], "found '0', expected a whole number from 1"),
        (["pairing", "--repeats", "few"], "found 'few', expected a whole number from 1"),
    ],
)
def test_bad_invocations(arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert found in capsys.readouterr().err


def test_the_help_names_the_benchmarks(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())  # argparse breaks lines
    assert f"one of: {', '.join(BENCHMARKS)}" in printed


@pytest.mark.usefixtures("shared")
def test_build_times_the_parts_of_one_capture(
    vocabularies: Vocabularies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small = {"TEACHER": build.SMALL_TEACHER, "TOKENIZER": vocabularies.first, "FEW_ROWS": 2, "MANY_ROWS": 4}
    for name, smaller in small.items():
        monkeypatch.setattr(build, name, smaller)
    file = tmp_path / "build.json"
    assert main(["build", "--rows", "2", "--repeats", "1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    assert all(value > 0 for value in figures.values())
    assert figures["teacher_s"] + figures["write_s"] - figures["guard_s"] < figures["capture_s"]
    assert figures["guard_share"] == pytest.approx(figures["guard_s"] / figures["capture_s"])
    assert figures["overhead_ratio"] == pytest.approx(figures["capture_s"] / figures["forward_only_s"])
    assert figures["rss_ratio_10x"] == pytest.approx(figures["small_rss_mib_10x"] / figures["small_rss_mib"])
