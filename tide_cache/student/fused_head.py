"""The fused head in Triton's kernels: no logits in memory, but for their gradient at some of the ids at a time.

`row_statistics` calls it on a GPU, for inputs of 16 bits; `tiles.py` is the way elsewhere, and what this is tested
against. Forward is one kernel. Backward has a kernel that writes the gradient of the logits of a range of ids, and two
matrix products for each range; so no weight's gradient is added up in memory, and no result depends on an order.

Shape suffixes: N masked rows, D hidden size, V vocabulary, K ids asked for, T temperatures, P parts of the vocabulary,
C tiles of the vocabulary, B blocks of rows.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
import triton

from tide_cache.modeling.head import add_product
from tide_cache.student.fused_kernels import gradient_of_logits, sums_of_powers

IS_INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run on a CPU, through numpy; products of 16-bit numbers are then computed in float32."""
_LAST = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Cut:
    """How the kernels cut their work.

    Attributes:
        rows: Of a tile.
        ids: Of a tile.
        step: Of the hidden size, which is summed over.
        tiles: Of a program, one after the other, in forward.
        warps: Of a program.
        stages: Steps that are loaded ahead.
        gradient_ids: Numbers of the logits' gradient that are in memory at a time: 64 MiB in bfloat16.
    """

    rows: int = 128
    ids: int = 256
    step: int = 64
    tiles: int = 4
    warps: int = 8
    stages: int = 3
    gradient_ids: int = 1 << 25


CUT = Cut()


@dataclass(frozen=True, eq=False)
class FusedHead:
    """What forward and backward of one call share.

    Attributes:
        temperatures: T, in the caller's order.
        cut: Of the work.
        codes_NK: The ids asked for, sorted: 2 id + 1 for a kept one, 2 id for another; the largest number at padding.
        order_NK: Where each stood.
        first_CN: Place in its row of the first code of a tile; one line more for the end.
        rounds_CB: Most codes of a row of a block that fall into a tile.
    """

    temperatures: tuple[float, ...]
    cut: Cut
    codes_NK: torch.Tensor
    order_NK: torch.Tensor
    first_CN: torch.Tensor
    rounds_CB: torch.Tensor

    @staticmethod
    def of(
        ids_NK: torch.Tensor,
        is_kept_NK: torch.Tensor,
        vocab: int,
        temperatures: tuple[float, ...],
        cut: Cut | None = None,
    ) -> "FusedHead":
        """Sort the ids asked for, and look up which of them fall into which tile; the host does not wait.

        Args:
            ids_NK: Ids to gather, -1 if a row has fewer.
            is_kept_NK: Which of them are kept ones; never one of -1.
            vocab: V.
            temperatures: T.
            cut: Of the work; by default `CUT`.
        """
        cut = cut or CUT
        rows, num_tiles = len(ids_NK), triton.cdiv(vocab, cut.ids)
        codes_NK, order_NK = torch.where(ids_NK >= 0, ids_NK * 2 + is_kept_NK, _LAST).int().sort(dim=1)
        edges_C = torch.arange(num_tiles + 1, dtype=torch.int32, device=ids_NK.device) * (2 * cut.ids)
        first_NC = torch.searchsorted(codes_NK, edges_C.expand(rows, -1).contiguous(), out_int32=True)
        first_CN = first_NC.T.contiguous()
        counts_CN = F.pad(first_CN.diff(dim=0), (0, -rows % cut.rows))
        rounds_CB = counts_CN.view(num_tiles, -1, cut.rows).amax(dim=2) if rows else counts_CN
        return FusedHead(temperatures, cut, codes_NK, order_NK, first_CN, rounds_CB)

    def forward(self, hidden_ND: torch.Tensor, head_VD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits at the ids asked for [N, K], 0 at padding, and log_rest [N, T]; both float32.

        Args:
            hidden_ND: Final hidden states.
            head_VD: Output weight, same dtype.
        """
        hidden_ND, head_VD = _by_rows(hidden_ND), _by_rows(head_VD)
        powers, num_tiles = self._powers, len(self.first_CN) - 1
        parts = triton.cdiv(num_tiles, self.cut.tiles)
        new = partial(torch.empty, dtype=torch.float32, device=hidden_ND.device)
        largest_PN, sums_PNT = new(parts, len(hidden_ND)), new(parts, len(hidden_ND), len(powers.falling))
        sorted_NK = new(self.codes_NK.shape).zero_()
        self._launch(
            sums_of_powers, parts, hidden_ND, head_VD, largest=largest_PN, sums=sums_PNT, gathered=sorted_NK,
            num_tiles=num_tiles, PLACES=triton.next_power_of_2(len(powers.falling)), TILES=self.cut.tiles,
        )  # fmt: skip
        largest_N = largest_PN.amax(dim=0)
        largest_N = torch.where(largest_N > -torch.inf, largest_N, 0)
        log_rest = []
        for temperature in self.temperatures:
            sums_PN = sums_PNT[:, :, powers.falling.index(temperature)]
            sum_N = (sums_PN * ((largest_PN - largest_N) / temperature).exp()).sum(dim=0)
            log_rest.append(sum_N.log() + largest_N / temperature)
        return torch.empty_like(sorted_NK).scatter_(1, self.order_NK, sorted_NK), torch.stack(log_rest, dim=1)

    def backward(
        self,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        log_rest_NT: torch.Tensor,
        coefficient_NT: torch.Tensor,
        at_ids_NK: torch.Tensor,
        is_head_trained: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradients of the hidden states, float32, and of the output weight, in its dtype.

        Args:
            hidden_ND: As in forward.
            head_VD: As in forward.
            log_rest_NT: From forward, 0 in place of -inf.
            coefficient_NT: Of the softmax over the ids that are not kept.
            at_ids_NK: Gradient of the logits at the ids asked for, beside that softmax.
            is_head_trained: Otherwise its gradient is None.
        """
        hidden_ND, head_VD = _by_rows(hidden_ND), _by_rows(head_VD)
        powers, vocab, ids = self._powers, len(head_VD), self.cut.ids
        shifts_TN, factors_TN = powers.shifts_and_factors(self.temperatures, log_rest_NT, coefficient_NT)
        sorted_NK = at_ids_NK.float().gather(1, self.order_NK)
        num_tiles = triton.cdiv(vocab, ids)
        tiles = min(num_tiles, max(1, self.cut.gradient_ids // (max(1, len(hidden_ND)) * ids)))
        gradient_NW = hidden_ND.new_empty(len(hidden_ND), tiles * ids)
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32)
        make = torch.empty_like if len(hidden_ND) else torch.zeros_like
        grad_head_VD = make(head_VD) if is_head_trained else None
        for first_tile in range(0, num_tiles if len(hidden_ND) else 0, tiles):
            part = slice(first_tile * ids, min((first_tile + tiles) * ids, vocab))
            self._launch(
                gradient_of_logits, triton.cdiv(part.stop - part.start, ids), hidden_ND, head_VD, shifts=shifts_TN,
                factors=factors_TN, at_ids=sorted_NK, gradient=gradient_NW, first_tile=first_tile,
                gradient_stride=gradient_NW.stride(0),
            )  # fmt: skip
            of_part_NW = gradient_NW[:, : part.stop - part.start]
            add_product(grad_hidden_ND, of_part_NW, head_VD[part])
            if grad_head_VD is not None:
                torch.mm(of_part_NW.T, hidden_ND, out=grad_head_VD[part])
        return grad_hidden_ND, grad_head_VD

    @cached_property
    def _powers(self) -> "_Powers":
        return _Powers.of(self.temperatures)

    def _launch(
        self, kernel: Any, parts: int, hidden_ND: torch.Tensor, head_VD: torch.Tensor, **arguments: Any
    ) -> None:
        """Run a kernel on all rows and some parts of the vocabulary."""
        (rows, size), num_ids = hidden_ND.shape, self.codes_NK.shape[1]
        if not rows:  # an empty grid is an error
            return
        powers, cut = self._powers, self.cut
        with torch.cuda.device_of(hidden_ND):  # type: ignore[no-untyped-call]
            kernel[triton.cdiv(rows, cut.rows), parts](
                hidden=hidden_ND, head=head_VD, codes=self.codes_NK, first=self.first_CN, rounds=self.rounds_CB,
                num_rows=rows, num_ids=num_ids, vocab=len(head_VD), hidden_stride=hidden_ND.stride(0),
                head_stride=head_VD.stride(0), size=size, IS_WHOLE=size % cut.step == 0, HAS_IDS=num_ids > 0,
                SCALES=powers.scales, SQUARED=powers.is_square, ROWS=cut.rows, IDS=cut.ids, STEP=cut.step,
                IN_FLOAT32=IS_INTERPRETED, num_warps=cut.warps, num_stages=cut.stages, **arguments,
            )  # fmt: skip


@dataclass(frozen=True)
class _Powers:
    """How powers at several T are made of few.

    Attributes:
        falling: T, the highest first.
        scales: log2(e) / T.
        is_square: Whether powers are the squares of those before them.
    """

    falling: tuple[float, ...]
    scales: tuple[float, ...]
    is_square: tuple[bool, ...]

    @staticmethod
    def of(temperatures: tuple[float, ...]) -> "_Powers":
        """Order temperatures, which may be in any order; squares are not squared again, which could underflow."""
        falling = tuple(sorted(set(temperatures), reverse=True))
        is_square: list[bool] = []
        for index, temperature in enumerate(falling):
            is_half = index > 0 and falling[index - 1] == 2 * temperature
            is_square.append(is_half and not is_square[-1])
        return _Powers(falling, tuple(math.log2(math.e) / temperature for temperature in falling), tuple(is_square))

    def shifts_and_factors(
        self, temperatures: tuple[float, ...], log_rest_NT: torch.Tensor, coefficient_NT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is subtracted in an exponent, and what its power is multiplied by, each [T, N], T falling."""
        of_T = [[index for index, other in enumerate(temperatures) if other == T] for T in self.falling]
        rests = [log_rest_NT[:, places[0]] for places in of_T]
        sums = [torch.stack([coefficient_NT[:, place] for place in places]).sum(dim=0) for places in of_T]
        factors = [sum_N / T for sum_N, T in zip(sums, self.falling, strict=True)]
        for index, is_square in enumerate(self.is_square):
            if is_square:  # the power before is relative to its own log_rest
                factors[index] = factors[index] * (2 * rests[index - 1] - rests[index]).exp()
        shifts = [log_rest_N * math.log2(math.e) for log_rest_N in rests]
        return torch.stack(shifts).float(), torch.stack(factors).float()


def _by_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix whose rows lie in memory without gaps between their numbers."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
