"""The fused head's kernels in Triton's interpreter, compared with torch's way; prints what failed, by case, as JSON.

Run in a process of its own: Triton reads TRITON_INTERPRET as it is imported, and so do its own functions.
"""

import json
import os
import sys
import traceback
from dataclasses import dataclass

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.gpu import heads
from tide_cache.student import fused_head, head_way
from tide_cache.student.fused_head import Cut
from tide_cache.student.row_statistics import row_statistics

VOCAB, TILE = 77, 32
fused_head.CUT = Cut(rows=16, ids=TILE, step=16, tiles=2, warps=4, gradient_ids=18 * TILE)
CASES = {}


@dataclass
class Case:
    """Inputs, and weights of the results in a loss."""

    hidden: torch.Tensor
    head: torch.Tensor
    ids: torch.Tensor
    is_kept: torch.Tensor
    temperatures: tuple[float, ...] = (1.0, 2.0)
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    num_ids: int | None = None

    def results(self, way, dtype):
        """Statistics and gradients of a loss that has another weight for each number."""
        hidden, head = (part.detach().to(dtype).requires_grad_() for part in (self.hidden, self.head))
        how = {"way": way, "num_ids": self.num_ids}
        found = row_statistics(hidden, head, self.ids, self.temperatures, self.is_kept, **how)
        parts = [found.gathered_NK, found.log_z_NT, found.log_rest_NT]
        random = torch.Generator().manual_seed(1)
        loss = torch.zeros((), dtype=parts[0].dtype)
        for part, weight in zip(parts, self.weights, strict=True):
            of_each = torch.randn(part.shape, generator=random).to(part.dtype)
            of_each[: len(of_each) // 3] = 0  # rows without a gradient
            loss = loss + weight * torch.where(part > -torch.inf, part * of_each, 0).sum() if weight else loss
        return [part.detach() for part in parts], torch.autograd.grad(loss, (hidden, head))

    def compare(self, rtol=2e-5, atol=2e-5, dtype=torch.float32, than=torch.float64):
        """Hold the kernels to torch's way in another dtype."""
        found, gradients = self.results("triton", dtype)
        assert [part.dtype for part in (*found, *gradients)] == [torch.float32] * 3 + [dtype] * 2
        rounded = Case(*(part.to(dtype) for part in (self.hidden, self.head)), *list(vars(self).values())[2:])
        want, of_want = rounded.results("torch", than)
        for one, other in zip([*found, *gradients], [*want, *of_want], strict=True):
            torch.testing.assert_close(one.to(than), other, rtol=rtol, atol=atol)


def case(rows=21, vocab=VOCAB, size=40, k=5, **more):
    """Rows with kept ids, fewer kept ids, none at all, and a true token that is a kept id too."""
    random = torch.Generator().manual_seed(rows + vocab + size)
    hidden, head = (torch.randn(*shape, generator=random) for shape in ((rows, size), (vocab, size)))
    ids = torch.zeros(rows, k, dtype=torch.int64)
    for row in range(rows):
        ids[row] = torch.randperm(vocab, generator=random)[:k]
        ids[row, 1 + row % (k + 1) :] = -1 if k else ids[row]
    if rows > 7 and k > 2:
        ids[7] = -1
        ids[5, 0], ids[8, 0] = ids[5, 1], ids[8, 2]
    return Case(hidden, head, ids, (torch.arange(k) > 0).expand(rows, k), **more)


def named(name):
    """Add a case."""
    return lambda function: CASES.setdefault(name, function)


for temperatures in ((1.0,), (2.0,), (1.0, 2.0), (1.0, 2.0, 5.0), (0.5, 4.0, 1.0, 2.0), (1.0, 1.0)):
    name = f"temperatures {temperatures}"
    CASES[name] = lambda temperatures=temperatures: case(temperatures=temperatures).compare()
for rows in (0, 1, 16, 33):
    CASES[f"{rows} rows"] = lambda rows=rows: case(rows).compare()
for vocab in (5, TILE, 3 * TILE):
    CASES[f"{vocab} ids"] = lambda vocab=vocab: case(vocab=vocab).compare()
for size in (16, 7):
    CASES[f"hidden size {size}"] = lambda size=size: case(size=size).compare()
CASES["nothing asked for"] = lambda: case(k=0).compare()
for index, name in enumerate(("gathered", "log_z", "log_rest")):
    weights = tuple(float(index == other) for other in range(3))
    CASES[f"only {name} has a gradient"] = lambda weights=weights: case(weights=weights).compare()
CASES["bfloat16, and what is rounded"] = lambda: case(rows=33).compare(0.01, 0.02, torch.bfloat16)


@named("float32 as torch's way in float32")
def _same_dtype():
    case().compare(than=torch.float32)


@named("rows of padding")
def _padding():
    one = case(vocab=49, num_ids=49)
    one.head = torch.cat([one.head, torch.full((15, one.head.shape[1]), 3.0)])
    one.compare()
    assert (one.results("triton", torch.float32)[1][1][49:] == 0).all()


@named("every id is kept")
def _nothing_left():
    one = case(rows=17, vocab=6, k=6)
    one.ids, one.is_kept = torch.arange(6).expand(17, 6).clone(), torch.ones(17, 6, dtype=torch.bool)
    assert (one.results("triton", torch.float32)[0][2] == -torch.inf).all()
    one.compare()


@named("logits far from each other")
def _far():
    one = case(rows=3, size=VOCAB, k=2)
    one.hidden = torch.zeros(3, VOCAB)
    one.hidden[0, 0], one.hidden[0, 70], one.hidden[1, 76], one.hidden[2] = 500, -500, 500, -900
    one.head = torch.eye(VOCAB)
    one.compare(1e-4, 1e-3)  # 500 is rounded by 3e-5


@named("inputs with gaps in memory")
def _strided():
    one = case()
    plain = one.results("triton", torch.float32)
    gaps = case()
    gaps.hidden = torch.cat([one.hidden, one.hidden], dim=1)[:, : one.hidden.shape[1]]
    gaps.head = one.head.T.contiguous().T
    found = gaps.results("triton", torch.float32)
    for part, other in zip((*found[0], *found[1]), (*plain[0], *plain[1]), strict=True):
        assert torch.equal(part, other)  # and the same every time
    gaps.compare()


@named("a head that is not trained")
def _frozen():
    one = case()
    hidden = one.hidden.clone().requires_grad_()
    for way in ("triton", "torch"):
        row_statistics(hidden, one.head, one.ids, (1.0,), one.is_kept, way=way).log_z_NT.sum().backward()
    assert one.head.grad is None
    torch.testing.assert_close(hidden.grad, 2 * torch.autograd.grad(_log_z(hidden, one), hidden)[0])


def _log_z(hidden, one):
    return (hidden @ one.head.T).logsumexp(1).sum()


class Allocated(TorchDispatchMode):
    """Remembers the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_iter(result) if isinstance(part, torch.Tensor)]
        self.shapes |= {tuple(part.shape) for part in tensors if part.dtype != torch.uint8}  # the interpreter's bytes
        return result


@named("no tensor has all logits")
def _memory():
    rows, vocab, size = 48, 10 * TILE, 16
    one = case(rows, vocab, size, k=2)
    with Allocated() as made:
        one.results("triton", torch.float32)
    of_rows = {shape for shape in made.shapes if rows in shape}
    assert (rows, TILE) in of_rows  # the gradient of a part of the logits
    assert max(torch.Size(shape).numel() for shape in of_rows) == rows * TILE
    assert max(torch.Size(shape).numel() for shape in made.shapes) == vocab * size


@named("the trial before a run")
def _trial():
    head_way.kernels_problem.cache_clear()
    assert head_way.try_kernels(torch.device("cpu"), torch.float32, 16, (1.0, 2.0)) is None
    right = fused_head.FusedHead.forward
    fused_head.FusedHead.forward = lambda *inputs: [part * 1.1 for part in right(*inputs)]
    try:
        assert "differ from the plain head by" in head_way.try_kernels(torch.device("cpu"), torch.float32, 16, (1.0,))
    finally:
        fused_head.FusedHead.forward = right


@named("what is measured on a GPU")
def _measured():
    found = heads.agree("cpu", heads.DRY)
    errors = {name: value for name, value in found.items() if name.startswith("error_")}
    assert len(errors) == 10
    assert max(errors.values()) < 0.01
    assert found["is_same_again_triton"] == 1
    heads.CUTS = {"tiles1": {"tiles": 1}}
    found = heads.compare("cpu", 1) | heads.cuts("cpu", 1)
    assert {"torch_s", "triton_s", "triton_tiles1_s", "products_s", "time_ratio", "difference_head"} <= found.keys()


def main():
    """Run every case, or those that are named."""
    failed = {}
    for name, run in CASES.items():
        try:
            run()
        except Exception:
            failed[name] = traceback.format_exc()
    json.dump({"cases": list(CASES), "failed": failed}, sys.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
