"""The fused head against the plain one that holds all logits: memory and time of a forward and its backward.

Both give what objectives ask for at T = 1 and 2: 64 gathered logits, logsumexp over all ids and over the others. Memory
is the process's peak above its weights and their gradient, each in a separate process. `ce_time_ratio` sets the fused
head at T = 1 against a plain cross-entropy, which needs far less than the objectives do.
"""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from benchmarks.options import Options
from tide_cache.student.row_statistics import row_statistics

VOCAB, NUM_ROWS, NUM_IDS = 151_936, 512, 64
SIZES = (128, 1024)
MIB = 1 << 20

Result = TypeVar("Result")


def run(options: Options) -> dict[str, float]:
    """Measure memory in fresh processes, then time in one, in turns."""
    figures: dict[str, float] = {}
    for size in SIZES:
        peaks = {name: _alone(_peak_mib, name, size) for name in ("fused", "naive")}
        seconds = _alone(_seconds, size, options.repeats)
        of_size = {f"{name}_peak_mib": value for name, value in peaks.items()}
        of_size |= {f"{name}_s": median(seconds[name]) for name in seconds}
        of_size["memory_ratio"] = peaks["fused"] / peaks["naive"]
        of_size["time_ratio"] = _ratio(seconds, "fused", "naive")
        of_size["ce_time_ratio"] = _ratio(seconds, "fused_ce", "naive_ce")
        figures |= {f"d{size}_{name}": value for name, value in of_size.items()}
    return figures


def _ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def _alone(work: Callable[..., Result], *arguments: Any) -> Result:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class Material:
    """Hidden states, head and ids, and the heads that are compared; each leaves its gradients behind."""

    def __init__(self, size: int, num_rows: int = NUM_ROWS, vocab: int = VOCAB) -> None:
        random = torch.Generator().manual_seed(0)
        self.hidden_ND = torch.randn(num_rows, size, generator=random).requires_grad_()
        self.head_VD = torch.randn(vocab, size, generator=random).mul_(size**-0.5).requires_grad_()
        ids = [torch.randperm(vocab, generator=random)[:NUM_IDS] for _ in range(num_rows)]
        self.ids_NK = torch.stack(ids)

    def fused(self) -> list[torch.Tensor]:
        """The fused head."""
        return self._statistics((1.0, 2.0), self.ids_NK)

    def naive(self) -> list[torch.Tensor]:
        """The same from all logits."""
        logits_NV = self.hidden_ND @ self.head_VD.T
        rest_NV = logits_NV.scatter(1, self.ids_NK, -torch.inf)
        sums = [(part / t).logsumexp(dim=1).mean() for part in (logits_NV, rest_NV) for t in (1.0, 2.0)]
        return self._gradients(logits_NV.gather(1, self.ids_NK).mean() + torch.stack(sums).sum() / 2)

    def fused_ce(self) -> list[torch.Tensor]:
        """Cross-entropy by the fused head."""
        return self._statistics((1.0,), self.ids_NK[:, :1])

    def naive_ce(self) -> list[torch.Tensor]:
        """Cross-entropy from all logits."""
        return self._gradients(F.cross_entropy(self.hidden_ND @ self.head_VD.T, self.ids_NK[:, 0]))

    def _statistics(self, temperatures: tuple[float, ...], ids_NK: torch.Tensor) -> list[torch.Tensor]:
        found = row_statistics(self.hidden_ND, self.head_VD, ids_NK, temperatures)
        if len(temperatures) == 1:
            return self._gradients((found.log_z_NT[:, 0] - found.gathered_NK[:, 0]).mean())
        return self._gradients(found.gathered_NK.mean() + found.log_z_NT.mean() + found.log_rest_NT.mean())

    def _gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, (self.hidden_ND, self.head_VD)))


def _peak_mib(name: str, size: int) -> float:
    """Return the peak of one pass above what lies there before it and the gradients that it leaves."""
    getattr(Material(size, num_rows=2, vocab=100), name)()  # what torch loads at first use is no memory of the head
    material = Material(size)
    with open("/proc/self/statm", encoding="ascii") as file:
        before = int(file.read().split()[1]) * resource.getpagesize()
    _forget_peak()
    gradients = getattr(material, name)()
    with open("/proc/self/status", encoding="ascii") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return (peak - before - sum(gradient.nbytes for gradient in gradients)) / MIB


def _forget_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _seconds(size: int, repeats: int) -> dict[str, list[float]]:
    material = Material(size)
    names = ("fused", "naive", "fused_ce", "naive_ce")
    for one, other in (names[:2], names[2:]):
        for part, same in zip(getattr(material, one)(), getattr(material, other)(), strict=True):
            torch.testing.assert_close(part, same, rtol=1e-3, atol=1e-6)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            start = perf_counter()
            getattr(material, name)()
            seconds[name].append(perf_counter() - start)
    return seconds
