"""Benchmarks of training: figures are there and consistent, and the suite for GPUs skips, lists and ends in time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import amortise, gpu_suite, loader, online, scale, step
from benchmarks.gpu import first, second
from benchmarks.gpu.watching import union_ns
from benchmarks.material import Loading, Shape, write_cache
from benchmarks.online import ROWS, SMALL
from benchmarks.published_shapes import LLADA2_MINI, SMALL_LLADA2, SMALL_WEDLM, STUDENT, WEDLM_8B, random_backbone
from benchmarks.scale import difference
from benchmarks.step import StepSize, measure
from benchmarks.students import PROXY
from helpers.fresh import IS_FULL
from tide_cache.loading.micro_batches import step_micro_batches
from tide_cache.manifest.verify import verify
from tide_cache.modeling.backbone import ADAPTERS
from tide_cache.modeling.packing import pack_full


@pytest.mark.parametrize("pipeline", ["shared", "cross"])
def test_made_up_caches_are_lawful_and_load(tmp_path: Path, pipeline):
    shape = Shape(pipeline, 6, student_length=64, prompt_length=10, vocab_size=512, top_k=8)
    manifest = write_cache(tmp_path / "cache", shape)
    assert verify(tmp_path / "cache", deep=True).ok
    ((batch, targets),) = Loading(tmp_path / "cache", manifest).batches(1, 6)
    assert len(targets.true_id_N) == len(batch.row_sample_N) > 20
    assert bool((batch.row_position_N >= 10).all())
    assert bool(targets.topk.has_topk_N.all()) == (pipeline == "shared")
    assert (len(targets.chunks.candidate_chunk_J) > 0) == (pipeline == "cross")


def test_a_step_is_compared_with_the_cross_entropy_of_its_pipeline():
    size = StepSize(PROXY | {"num_hidden_layers": 1}, vocab_size=256, length=32, micro_batch=1)
    figures = measure(size, 1, ("cross/bd3lm", "cross/calm"))
    assert {"cross/calm_time_ratio", "cross/calm_memory_ratio", "cross/again_time_ratio"} <= set(figures)
    assert figures["cross/calm_memory_ratio"] == pytest.approx(
        figures["cross/calm_peak_mib"] / figures["cross/bd3lm_peak_mib"]
    )
    assert all(value > 0 for value in figures.values())


def test_the_formula_of_all_runs():
    parts = {f"{row}_{side}_step_s": seconds for row in ROWS for side, seconds in (("online", 3.0), ("ours", 1.0))}
    parts |= {f"{pipeline}_capture_{name}_s_per_view": 0.25 for pipeline in ("shared", "cross") for name in ("a", "b")}
    figures = amortise.totals(parts, micro_batch=2)
    assert figures["online_total_s_per_sample"] == 6 * 10 / 2 * 3
    assert figures["ours_total_s_per_sample"] == 8 * 4 * 0.25 + 6 * 10 / 2 * 1
    assert figures["amortise_ratio"] == pytest.approx(90 / 38)


@pytest.mark.parametrize(
    ("raw", "billions"), [(STUDENT, 0.596), (WEDLM_8B, 8.19), (LLADA2_MINI, 16.256)], ids=lambda x: str(x)[:20]
)
def test_published_shapes_have_the_published_number_of_weights(raw, billions):
    with torch.device("meta"):
        if raw["model_type"] == "llada2_moe":
            from tide_cache.modeling.mixture import Mixture

            model = Mixture(ADAPTERS["llada2_moe"].read_config(raw, "published"))
        else:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_config(ADAPTERS[raw["model_type"]].read_config(raw, "published"))
    weights = {id(weight): weight.numel() for weight in model.parameters()}
    assert sum(weights.values()) / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("raw", [SMALL_LLADA2, SMALL_WEDLM], ids=["llada2", "wedlm"])
@torch.no_grad()
def test_random_weights_give_finite_hidden_states(raw):
    backbone = random_backbone(raw, torch.float32, "cpu")
    hidden_BSD = backbone(pack_full(torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)))
    assert bool(hidden_BSD.isfinite().all())


def test_capturing_is_timed_in_both_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(amortise, "NUM_VIEWS", 1)
    setting = replace(SMALL[1], length=32, micro_batch=1)
    write_cache(tmp_path / "cache", setting.shape)
    figures = amortise.measure_capture(setting, tmp_path / "cache", repeats=1)
    assert set(figures) == {f"shared_capture_{name}_s_per_view" for name in ("plain", "compdemo")}
    assert all(value > 0 for value in figures.values())


def test_differences_are_relative():
    assert difference([2.0, 4.0], [2.0, 3.0]) == 0.25


class TestGpuSuite:
    def test_without_a_gpu_it_says_so_and_skips(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert gpu_suite.main(["--out", str(tmp_path / "out")]) == 0
        assert "gpu_suite: skipped, found no CUDA GPU; --tiny tries the pieces" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_it_lists_its_pieces(self, capsys):
        assert gpu_suite.main(["--list"]) == 0
        assert capsys.readouterr().out.split() == list(gpu_suite.PIECES)

    def test_both_calls_run_dry_to_their_end(self, tmp_path, monkeypatch):
        """With one of each kind of work; a figure that cannot be had does not cost the others."""
        monkeypatch.setattr(first, "CAPTURES", (("llada2_moe", "block"),))
        monkeypatch.setattr(first, "NAMES", ("cross/tide-chunk",))
        monkeypatch.setattr(first, "ZERO", ({"zero_stage": 2, "offload": "optimizer"},))
        monkeypatch.setattr(first, "import_without_toolkit", lambda: {"lines_on_stdout": 1 / 0})
        monkeypatch.setattr(second, "STEPS", {"kl": "shared/kl"})
        monkeypatch.setattr(second, "CAPTURES", {"chunks": second.CAPTURES["llada2_chunks"]})
        for call, is_whole in (("first", False), ("second", True)):
            assert gpu_suite.main(["--call", call, "--dry-run", "--out", str(tmp_path)]) == int(not is_whole)
        found = {call: json.loads((tmp_path / f"{call}.json").read_text()) for call in ("first", "second")}
        assert list(found["first"]["faults"]) == ["import_without_toolkit"]
        assert found["second"]["faults"] == {}
        errors = {name: value for name, value in found["first"]["figures"].items() if "error" in name}
        assert {name.split(".")[0] for name in errors} == {
            "products", "grouped", "head", "capture_llada2_moe_block", "step_cross/tide-chunk",
        }  # fmt: skip
        assert all(value < 0.01 for value in errors.values())
        assert {"build.shards", "train_2_optimizer.loss", "resume.loss", "eval.nll"} <= found["first"]["figures"].keys()
        assert found["second"]["figures"]["capture_chunks.positions_per_s"] > 0

    def test_a_call_without_time_says_what_is_left_out(self, tmp_path, capsys):
        assert (
            gpu_suite.main(["--call", "second", "--dry-run", "--seconds", "-1", "--out", str(tmp_path / "x.json")]) == 0
        )
        record = json.loads((tmp_path / "x.json").read_text())
        assert record["figures"] == {}
        assert "capture_wedlm_block" in record["left_out"]
        assert "no time for head, step_ce" in capsys.readouterr().err

    def test_spans_that_overlap_count_once(self):
        assert union_ns([(5, 9), (0, 4), (3, 6), (20, 21)]) == 10

    def test_a_piece_that_takes_too_long_is_ended(self, tmp_path, capsys):
        assert gpu_suite.main(["--tiny", "--piece", "loader", "--out", str(tmp_path), "--budget", "0.01"]) == 1
        assert "loader: out of time" in capsys.readouterr().err
        assert "no figures of loader" not in capsys.readouterr().out

    def test_a_tiny_piece_writes_its_figures(self, tmp_path):
        gpu_suite.write_piece("loader", tmp_path, is_tiny=True)
        record = json.loads((tmp_path / "loader.json").read_text())
        assert record["command"] == "python -m benchmarks.gpu_suite --piece loader --tiny"
        assert all(value >= 0 for value in record["figures"].values())
        assert record["machine"]["cores"] >= 1

    @pytest.mark.parametrize("name", ["step_cross", *(["online_shared", "amortise_cross"] if IS_FULL else [])])
    def test_every_kind_of_piece_runs_to_its_end(self, tmp_path, monkeypatch, name):
        """With one distilled run of each pipeline instead of all."""
        monkeypatch.setattr(step, "NAMES", ("cross/bd3lm", "cross/calm"))
        monkeypatch.setattr(online, "ROWS", {row: ROWS[row] for row in ("cross/calm", "shared/kl")})
        monkeypatch.setattr(amortise, "NUM_VIEWS", 1)
        gpu_suite.write_piece(name, tmp_path, is_tiny=True)
        figures = json.loads((tmp_path / f"{name}.json").read_text())["figures"]
        assert any(figure.startswith(name.partition("_")[2]) for figure in figures)
        assert all(value > 0 for value in figures.values())


def test_every_rank_count_masks_the_same_tokens_and_another_order_is_noticed(monkeypatch):
    assert scale.is_order_identical()
    monkeypatch.setattr(scale, "step_micro_batches", lambda *args: list(step_micro_batches(*args))[:1])
    assert not scale.is_order_identical()


def test_memory_of_loading_is_measured_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "RSS_SAMPLES", 64)
    figures = scale.memory_figures(tmp_path)
    assert figures["rss_ratio_10x"] == pytest.approx(figures["rss_mib_10x"] / figures["rss_mib_1x"])
    assert figures["rss_mib_1x"] > 50


def test_pyarrow_alone_decodes_every_position(tmp_path):
    manifest = write_cache(tmp_path / "cache", Shape("shared", 6, student_length=64, prompt_length=10, top_k=8))
    ((_, targets),) = Loading(tmp_path / "cache", manifest).batches(1, 6)
    positions, seconds = loader.decode_alone(tmp_path / "cache")
    assert positions == len(targets.true_id_N)
    assert seconds > 0
