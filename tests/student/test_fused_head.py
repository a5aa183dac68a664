"""The fused head's kernels: in Triton's interpreter against torch's way, and compiled for a GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers import compiled_head
from helpers.fresh import IS_FULL
from tide_cache.config.objectives import CrossEntropyConfig
from tide_cache.errors import ModelError
from tide_cache.student import head_way
from tide_cache.student.row_statistics import row_statistics
from tide_cache.training import kernels

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "helpers" / "interpreted_head.py"


@pytest.fixture(scope="module")
def interpreted():
    """What every case said, from one process that has Triton as its interpreter."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", CASES], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_give_what_torch_gives(interpreted):
    assert len(interpreted["cases"]) == 29
    assert interpreted["failed"] == {}


def test_calls_compile_for_hopper_once(tmp_path, monkeypatch):
    """The interpreter runs much that the compiler refuses; and the number of rows differs from batch to batch."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    from triton.runtime import driver

    from tide_cache.student import fused_head

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fused_head, "CUT", fused_head.Cut(rows=64, ids=32, step=32, warps=4, stages=2))
    found = {name: [] for name in ("sums_of_powers", "gradient_of_logits")}
    for name, calls in found.items():
        monkeypatch.setattr(fused_head, name, compiled_head.Compiled(getattr(fused_head, name), calls))
    monkeypatch.setattr(driver, "_active", compiled_head.Hopper())
    for rows, k in ((7, 3), (16, 16), (33, 1)):
        hidden, head = torch.zeros(rows, 64).bfloat16(), torch.zeros(101, 64).bfloat16()
        ids = torch.arange(k).expand(rows, k).contiguous()
        fused = fused_head.FusedHead.of(ids, ids > 0, 101, (1.0, 2.0))
        fused.forward(hidden, head)
        fused.backward(hidden, head, torch.zeros(rows, 2), torch.zeros(rows, 2), torch.zeros(rows, k))
    for calls in found.values():
        assert len(calls) == 3
        assert len(set(map(id, calls))) == 1
        assert "wgmma.mma_async" in calls[0].asm["ptx"]


@pytest.mark.skipif(not IS_FULL, reason="half a minute; TIDE_CACHE_TESTS=full")
@pytest.mark.parametrize("kernel", ["sums_of_powers", "gradient_of_logits"])
def test_kernels_as_used_fit_a_multiprocessor(kernel, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    from tide_cache.student.fused_head import CUT

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = compiled_head.needs(compiled_head.compiled(kernel, CUT))
    assert found["shared_bytes"] <= 227 * 1024
    assert found["registers"] * 32 * CUT.warps <= 65_536
    assert found["spilled_bytes"] <= 64


def test_without_a_gpu_the_kernels_are_not_asked(monkeypatch):
    hidden, head, ids = torch.randn(3, 4).bfloat16(), torch.randn(9, 4).bfloat16(), torch.zeros(3, 1, dtype=torch.int64)
    monkeypatch.setattr(head_way, "kernels_problem", None)
    assert row_statistics(hidden, head, ids, (1.0,)).log_z_NT.shape == (3, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"way = 'triton': found the device 'cpu', and the kernels need CUDA; torch"):
        row_statistics(hidden, head, ids, (1.0,), way="triton")


def test_what_the_kernels_do_not_serve(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    asked = []
    monkeypatch.setattr(head_way, "try_kernels", lambda *inputs: asked.append(inputs))
    gpu = torch.device("cuda", 0)
    assert "found float32, and the kernels are for bfloat16" in head_way.kernels_problem(gpu, torch.float32, 8, (1.0,))
    for _ in range(2):  # tried once
        assert head_way.kernels_problem(gpu, torch.bfloat16, 8, (1.0,)) is None
    head_way.kernels_problem.cache_clear()
    assert asked == [(gpu, torch.bfloat16, 8, (1.0,))]


def test_without_triton_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("fused_head", "fused_kernels"):
        monkeypatch.delitem(sys.modules, f"tide_cache.student.{name}", raising=False)
    assert "triton is not there" in head_way.try_kernels(torch.device("cpu"), torch.bfloat16, 8, (1.0,))


class TestOnAGpu:
    """What a run does with the answer of the trial; the trial itself needs a GPU."""

    RUN = SimpleNamespace(train=SimpleNamespace(head="auto", precision="bfloat16"), objective=[CrossEntropyConfig()])
    BACKBONE = SimpleNamespace(head_VD=torch.zeros(9, 8))

    def remarks(self, monkeypatch, problem, **changed):
        monkeypatch.setattr(kernels, "kernels_problem", lambda *inputs: f"{problem} {inputs[1:]}")
        run = SimpleNamespace(**vars(self.RUN) | {"train": SimpleNamespace(**vars(self.RUN.train) | changed)})
        return kernels._try_head(run, self.BACKBONE, "cuda:0")

    def test_torch_takes_the_place_of_kernels_that_do_not_run(self, monkeypatch):
        (remark,) = self.remarks(monkeypatch, "no compiler")
        assert remark == "train.head = 'auto': torch is used, not triton: no compiler (torch.bfloat16, 8, (1.0,))"

    def test_asked_for_by_name_they_are_not_replaced(self, monkeypatch):
        with pytest.raises(ModelError, match=r"train.head = 'triton': no compiler .*; use torch"):
            self.remarks(monkeypatch, "no compiler", head="triton")

    def test_nobody_asks_in_float32(self, monkeypatch):
        assert self.remarks(monkeypatch, "no compiler", precision="float32") == []
