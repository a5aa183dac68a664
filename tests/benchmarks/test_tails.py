"""The comparison with the whole vocabulary, on a made teacher and student: laws, names, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from benchmarks.__main__ import main
from benchmarks.tails import Rows, Truncation, measure
from helpers.fresh import IS_FULL

SIZES = (4, 16, 64)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Forty rows over 300 tokens, at two t; both models sure of a few tokens, of which many are the same."""
    random = torch.Generator().manual_seed(0)
    teacher_NW = torch.randn(40, 12, generator=random)
    student_NW = torch.cat([teacher_NW[:, :8], torch.randn(40, 2, generator=random)], dim=1)
    head_VW = torch.randn(300, 12, generator=random)
    t_N = torch.tensor([0.3, 0.7]).repeat_interleave(20)
    return Rows(t_N, torch.arange(40), teacher_NW, student_NW, head_VW, head_VW[:, :10].contiguous())


@pytest.fixture(scope="module")
def figures(rows: Rows) -> dict[str, float]:
    """Three sizes, one of them with draws from the tail."""
    return measure(rows, [Truncation(f"k{k}", k, tail_samples=64 if k == 4 else 0) for k in SIZES])


def test_every_figure_is_finite(figures):
    assert all(math.isfinite(value) for value in figures.values())
    names = {"kl.T1.k4.sampled.t0.3.loss_pct", "tidal.T2.k16.rest.all.gradient_pct", "sharp.k4.all.outside_pct_T2"}
    assert names <= set(figures)
    assert figures["k16.all.rows"] == 40
    assert figures["k16.t0.3.rows"] == 20
    assert figures["k16.all.kept_ids"] == 16


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "tidal"])
@pytest.mark.parametrize("temperature", ["T1", "T2"])
def test_errors_fall_as_more_is_kept(figures, kind, temperature):
    for what in ("loss_pct", "gradient_pct", "head_gradient_pct"):
        errors = [abs(figures[f"{kind}.{temperature}.k{k}.rest.all.{what}"]) for k in SIZES]
        assert errors == sorted(errors, reverse=True), what
        assert errors[-1] < errors[0] / 1.5, what


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "tidal"])
@pytest.mark.parametrize("temperature", ["T1", "T2"])
@pytest.mark.parametrize("tail", ["rest", "renormalise"])
def test_the_whole_vocabulary_is_exact(figures, kind, temperature, tail):
    name = f"{kind}.{temperature}.everything.{tail}.all"
    for what in ("loss_pct", "gradient_pct", "head_gradient_pct"):
        assert abs(figures[f"{name}.{what}"]) < 1e-2, what
    assert figures[f"{name}.gradient_cosine"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl"])
def test_the_rest_never_raises_a_kl(figures, kind):
    losses = [
        value
        for name, value in figures.items()
        if name.startswith(f"{kind}.") and ".rest." in name and name.endswith("loss_pct") and ".everything." not in name
    ]
    assert len(losses) == 2 * len(SIZES) * 3  # two T, two t and all
    assert max(losses) < 0


def test_bytes_grow_with_what_is_kept(figures):
    sizes = [figures[f"k{k}.topk_bytes_per_row"] for k in SIZES]
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[0] > 60  # sixty more ids take at least a byte each
    assert "k4.tail_bytes_per_row" in figures
    assert "k16.tail_bytes_per_row" not in figures


def test_a_missing_model_says_how_to_make_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tails", "--teacher", str(tmp_path / "teacher")]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path}/teacher holds no model" in message
    assert "python examples/gsm8k-cpu/run.py" in message
    assert "--student" in message


def copied(model: Path, folder: Path, file: str, data: bytes) -> Path:
    """Copy a checkpoint, with one file changed."""
    shutil.copytree(model, folder)
    (folder / file).write_bytes(data)
    return folder


def test_models_of_two_tokenizers_are_refused(tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = json.loads((tiny_teacher / "tokenizer.json").read_text(encoding="utf-8"))
    other = copied(tiny_teacher, tmp_path / "other", "tokenizer.json", json.dumps(tokenizer, indent=3).encode())
    assert main(["tails", "--teacher", str(tiny_teacher), "--student", str(other)]) == 2
    assert "have different tokenizers; expected one for both" in capsys.readouterr().err


@pytest.mark.skipif(not IS_FULL, reason="takes seconds: TIDE_CACHE_TESTS=full")
@pytest.mark.usefixtures("shared")
def test_the_command_looks_at_text(tiny_teacher: Path, tmp_path: Path):
    weights = {name: value * 0.5 for name, value in load_file(tiny_teacher / "model.safetensors").items()}
    student = copied(tiny_teacher, tmp_path / "student", "model.safetensors", save(weights, {"format": "pt"}))
    file = tmp_path / "tails.json"
    models = ["--teacher", str(tiny_teacher), "--student", str(student)]
    assert main(["tails", "--rows", "4", *models, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    assert figures["k8.t0.1.rows"] < figures["k8.t0.9.rows"] <= 200
    assert all(math.isfinite(value) for value in figures.values())
