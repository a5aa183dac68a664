"""What a run reports, and where: every line says the same in metrics.jsonl and in what `train.report_to` names."""

import importlib.util
import json
import math

import pytest
import torch

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import DeviceMemoryError, RunFileError
from tide_cache.training.distributed import World
from tide_cache.training.metrics import StepMetrics
from tide_cache.training.prepare import prepare
from tide_cache.training.reporters import reporter_faults, scalars
from tide_cache.training.run import train

LINE = StepMetrics(
    step=3, epoch=0.5, loss=1.5, losses={"ce": 1.0, "tidal": 0.5}, nll_by_t=[None] * 9 + [2.0], learning_rate=0.1,
    gradient_norm=None, trust=0.25, tokens_per_s=10.0, stall_share=0.125, peak_memory_bytes=7, elapsed_s=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory, build_values):
    out = tmp_path_factory.mktemp("reported") / "cache"
    build_cache(BuildRun.model_validate(build_values(out, signals__temperatures=(1.0, 2.0))))
    return out


@pytest.fixture
def make_run(tmp_path, cache, tiny_teacher):
    def make(name="run", objectives=({"kind": "ce", "time_weight": "uniform"}, {"kind": "tidal"}), **section):
        values = {"out": str(tmp_path / name), "steps": 4, "global_batch": 8, "micro_batch": 4, "device": "cpu"}
        return TrainRun.model_validate(
            {
                "student": {"model": str(tiny_teacher)},
                "data": {"cache": str(cache)},
                "objective": objectives,
                "train": values | {"log_every": 1, "precision": "float32", "checkpoint_every": 2} | section,
            }
        )

    return make


def lines(run):
    return [json.loads(line) for line in (run.train.out / "metrics.jsonl").read_text().splitlines()]


def test_every_line_says_losses_by_t_trust_stall_and_memory(make_run):
    run = make_run(prefetch=0)
    train(run)
    for line in lines(run):
        known = [nll for nll in line["nll_by_t"] if nll is not None]
        assert len(line["nll_by_t"]) == 10
        assert min(known) <= line["losses"]["ce"] <= max(known)  # with uniform weights it is their mean
        assert line["gradient_norm"] > 0
        assert 0 < line["stall_share"] < 1
        assert line["peak_memory_bytes"] > 10_000_000
    trust = [line["trust"] for line in lines(run)]
    assert trust[0] == pytest.approx(0.1 * 0.5)
    assert trust == sorted(trust)
    train(alone := make_run("alone", objectives=[{"kind": "ce"}], steps=1))
    assert lines(alone)[0]["trust"] is None


def test_figures_have_flat_names_and_unknown_ones_are_left_out():
    assert dict(scalars(LINE)) == {
        "loss": 1.5, "losses/ce": 1.0, "losses/tidal": 0.5, "nll_by_t/0.9": 2.0, "learning_rate": 0.1, "trust": 0.25,
        "tokens_per_s": 10.0, "stall_share": 0.125, "peak_memory_bytes": 7.0,
    }  # fmt: skip


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None,
    reason="tensorboard is not installed: pip install 'tide-cache[tensorboard]'",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_shows_what_metrics_jsonl_says(make_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(report_to="tensorboard")
    with pytest.raises(ZeroDivisionError):
        train(run, on_step=lambda metrics, _: 1 // (3 - metrics.step))
    train(run, resume=True)
    events = EventAccumulator(str(run.train.out / "tensorboard"))
    events.Reload()
    shown = {scalar.step: scalar.value for scalar in events.Scalars("losses/tidal")}
    assert shown == {line["step"]: pytest.approx(line["losses"]["tidal"], rel=1e-6) for line in lines(run)}
    assert len(events.Scalars("loss")) == 4  # the step that was taken twice is shown once


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install 'tide-cache[wandb]'"
)
@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_writes_its_files_offline_and_resumes_the_same_run(make_run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = make_run(report_to="wandb")
    with pytest.raises(ZeroDivisionError):
        train(run, on_step=lambda metrics, _: 1 // (3 - metrics.step))
    known = (run.train.out / "wandb-run-id").read_text()
    train(run, resume=True)
    assert (run.train.out / "wandb-run-id").read_text() == known
    assert len(list((run.train.out / "wandb").glob(f"offline-run-*-{known}"))) == 2


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_reporter_that_is_not_installed_is_refused_before_anything_is_loaded(make_run, monkeypatch, name):
    monkeypatch.setattr("tide_cache.training.reporters.find_spec", lambda _: None)
    assert reporter_faults("none") == []
    with pytest.raises(RunFileError, match=rf"train\.report_to = '{name}': {name} is not installed; pip install 'tide"):
        prepare(make_run(report_to=name), World(0, 1, 0), resume=False)


def test_too_little_memory_is_said_with_what_lowers_the_need(make_run):
    def fail(metrics, _):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    with pytest.raises(DeviceMemoryError) as caught:
        train(make_run(), on_step=fail)
    said = str(caught.value)
    assert said.startswith("No room on cpu: CUDA out of memory. Tried to allocate 20.00 MiB. What lowers the need:\n")
    for part in (
        "micro_batch (found 4", "activation_checkpointing = true", "head_rows (found 256)", "zero_stage = 3 (found 0)",
        "offload (found 'none')", "[student.lora]",
    ):  # fmt: skip
        assert part in said
    assert "MiB.\nmore" not in said
    with pytest.raises(DeviceMemoryError) as caught:
        train(make_run("low", micro_batch=1, head_rows=1, activation_checkpointing=True, zero_stage=3,
                       offload="optimizer+parameters"), on_step=fail)  # fmt: skip
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == ["- [student.lora]"]


def test_the_norm_is_finite_and_of_the_whole_step(make_run):
    """Micro-batches that were counted more than once would raise it."""
    norms = []
    for micro_batch in (8, 2):
        for precision in ("float32", "bfloat16"):
            run = make_run(f"{precision}-{micro_batch}", micro_batch=micro_batch, precision=precision, steps=1)
            train(run)
            norms.append(lines(run)[0]["gradient_norm"])
    assert all(math.isfinite(norm) for norm in norms)
    assert norms == pytest.approx([norms[0]] * 4, rel=0.05)
