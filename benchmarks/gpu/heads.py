"""Both ways of the fused head on a GPU: do they agree, and what does each take.

Results and gradients are compared with those that float64 gives, on the CPU, from the same 16-bit inputs; times and
memory are those of a forward with its backward, at T = 1 and 2, with 64 kept ids and the true token of every row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu.watching import counted_waits, profiled
from tide_cache.config.settings import HeadWay
from tide_cache.student.head_way import kernels_problem
from tide_cache.student.row_statistics import row_statistics

TEMPERATURES = (1.0, 2.0)
NAMES = ("gathered", "log_z", "log_rest", "hidden", "head")
CUTS = {"ids128": {"ids": 128}, "ids128_warps4": {"ids": 128, "warps": 4}, "stages4": {"stages": 4}}
"""Other cuts of the kernels' work than the one in use; each is compiled for some seconds."""


@dataclass(frozen=True)
class HeadSize:
    """How large a head is.

    Attributes:
        rows: Masked rows.
        vocab: Ids.
        hidden: Hidden size.
        kept: Kept ids of a row.
    """

    rows: int
    vocab: int
    hidden: int
    kept: int


SMALL = HeadSize(rows=150, vocab=1000, hidden=72, kept=8)
PUBLISHED = HeadSize(rows=1600, vocab=151_936, hidden=1024, kept=64)
DRY = HeadSize(rows=9, vocab=70, hidden=24, kept=3)


class Heads:
    """Inputs, and what each way makes of them."""

    def __init__(self, size: HeadSize, device: str) -> None:
        """Draw inputs; the true token of every other row is a kept id too."""
        here: Any = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        shapes = ((size.rows, size.hidden), (size.vocab, size.hidden))
        hidden_ND, head_VD = (torch.randn(*shape, **here) for shape in shapes)
        self.hidden_ND = hidden_ND.bfloat16().requires_grad_()
        self.head_VD = (3 * head_VD * size.hidden**-0.5).bfloat16().requires_grad_()
        self.ids_NK = torch.rand(size.rows, size.vocab, **here).topk(size.kept + 1, dim=1).indices
        self.ids_NK[::2, 0] = self.ids_NK[::2, 1]
        self.is_kept_NK = (torch.arange(size.kept + 1, device=device) > 0).expand(size.rows, -1)
        self.weights = [torch.randn(size.rows, n, **here) for n in (size.kept + 1, 2, 2)]

    def run(self, way: HeadWay) -> list[torch.Tensor]:
        """Return statistics and gradients of a loss."""
        return self._run(self.hidden_ND, self.head_VD, way)

    def exact(self) -> list[torch.Tensor]:
        """Return the same in float64, on the CPU."""
        inputs = (part.detach().cpu().double().requires_grad_() for part in (self.hidden_ND, self.head_VD))
        return self._run(*inputs, "torch")

    def _run(self, hidden_ND: torch.Tensor, head_VD: torch.Tensor, way: HeadWay) -> list[torch.Tensor]:
        ids_NK, is_kept_NK = (part.to(hidden_ND.device) for part in (self.ids_NK, self.is_kept_NK))
        found = row_statistics(hidden_ND, head_VD, ids_NK, TEMPERATURES, is_kept_NK, way=way)
        parts = [found.gathered_NK, found.log_z_NT, found.log_rest_NT]
        loss = sum((part * weight.to(part)).mean() for part, weight in zip(parts, self.weights, strict=True))
        return [*(part.detach() for part in parts), *torch.autograd.grad(loss, (hidden_ND, head_VD))]  # type: ignore[arg-type]


def agree(device: str, size: HeadSize = SMALL) -> dict[str, float]:
    """Compare both ways with float64; and the kernels with themselves, whose numbers are the same each time."""
    heads = Heads(size, device)
    want = heads.exact()
    figures = {}
    for way in _ways(heads):
        found = heads.run(way)
        for name, one, other in zip(NAMES, found, want, strict=True):
            figures[f"error_{way}_{name}"] = _difference(one.cpu(), other)
        with counted_waits(device) as waits:
            again = heads.run(way)
        figures[f"waits_{way}"] = float(waits.count)
        figures[f"is_same_again_{way}"] = float(all(map(torch.equal, found, again)))
    return figures


def compare(device: str, rounds: int) -> dict[str, float]:
    """Time both ways, and the four products that they cannot do without, in turns."""
    heads = Heads(PUBLISHED if device != "cpu" else DRY, device)
    work: dict[str, Callable[[], Any]] = {way: partial(heads.run, way) for way in _ways(heads)}
    figures = _measured(work | {"products": partial(_products, heads)}, device, rounds)
    if "triton" in work:
        figures["time_ratio"] = figures["triton_s"] / figures["torch_s"]
        for name, one, other in zip(NAMES, heads.run("triton"), heads.run("torch"), strict=True):
            figures[f"difference_{name}"] = _difference(one, other)
    return figures


def cuts(device: str, rounds: int) -> dict[str, float]:
    """Time the kernels with other cuts of their work."""
    heads = Heads(PUBLISHED if device != "cpu" else DRY, device)
    if "triton" not in _ways(heads):
        return {}
    from tide_cache.student import fused_head

    figures, usual = {}, fused_head.CUT
    try:
        for name, changed in CUTS.items():
            fused_head.CUT = fused_head.Cut(**vars(usual) | changed)
            figures |= _measured({f"triton_{name}": partial(heads.run, "triton")}, device, rounds)
    finally:
        fused_head.CUT = usual
    return figures


def _ways(heads: Heads) -> list[HeadWay]:
    """Return the ways that run here; on a GPU it is a fault when one does not."""
    device, dtype = heads.hidden_ND.device, heads.hidden_ND.dtype
    problem = kernels_problem(device, dtype, heads.hidden_ND.shape[1], TEMPERATURES)
    if problem is not None and device.type != "cpu":
        raise RuntimeError(problem)
    return ["torch", "triton"] if problem is None else ["torch"]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def _products(heads: Heads) -> None:
    hidden_ND, head_VD = heads.hidden_ND.detach(), heads.head_VD.detach()
    for _ in range(2):
        logits_NV = hidden_ND @ head_VD.T
    logits_NV @ head_VD
    logits_NV.T @ hidden_ND


def _measured(work: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
    """Return seconds, of the first call too, launches, and the memory above what lay there."""
    figures, seconds = {}, {name: [] for name in work}
    for name, run in work.items():
        start_s = perf_counter()
        run()
        _wait(device)
        figures[f"{name}_first_s"] = perf_counter() - start_s
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            figures[f"{name}_peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    for _ in range(rounds):
        for name, run in work.items():
            _wait(device)
            start_s = perf_counter()
            run()
            _wait(device)
            seconds[name].append(perf_counter() - start_s)
    figures |= {f"{name}_s": median(of) for name, of in seconds.items()}
    return figures | {f"{name}_launches": float(profiled(run, device).launches) for name, run in work.items()}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
