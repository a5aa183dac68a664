"""The kernels of the fused head, in Triton: a tile of logits is made, used and forgotten without leaving the chip.

A program has ROWS rows and IDS ids at a time. The ids asked for come sorted, row by row, as codes: twice the id, and
one more for a kept one; so the same id asked for as true token comes before the kept one. A table says which of a row's
codes fall into a tile, and another how many rounds that is for the row of a program that has most.

Scales are log2(e) / T, T falling. Where a T is half the one before it, its powers are the squares of that one's.
"""

# mypy: ignore-errors
# (Triton reads these functions as a language of its own, with types where they are called.)

import triton
import triton.language as tl

UNLIKE = ["num_rows", "num_ids", "vocab", "num_tiles", "first_tile", "size"]
"""Differ from call to call; a kernel is not compiled anew because one of them happens to be a multiple of 16."""


@triton.jit
def _tile(
    hidden, head, row_R, id_W, size, hidden_stride, head_stride,
    IS_WHOLE: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, STEP: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Return the logits of a tile, [ROWS, IDS], float32."""
    at_R = hidden + row_R.to(tl.int64)[:, None] * hidden_stride
    at_W = head + id_W.to(tl.int64)[None, :] * head_stride
    logits_RW = tl.zeros((ROWS, IDS), tl.float32)
    for start in range(0, size, STEP):
        of_step = start + tl.arange(0, STEP)
        if IS_WHOLE:
            hidden_RD = tl.load(at_R + of_step[None, :])
            head_DW = tl.load(at_W + of_step[:, None])
        else:
            hidden_RD = tl.load(at_R + of_step[None, :], mask=(of_step < size)[None, :], other=0.0)
            head_DW = tl.load(at_W + of_step[:, None], mask=(of_step < size)[:, None], other=0.0)
        if IN_FLOAT32:
            hidden_RD, head_DW = hidden_RD.to(tl.float32), head_DW.to(tl.float32)
        logits_RW = tl.dot(hidden_RD, head_DW, logits_RW, input_precision="ieee")
    return logits_RW


@triton.jit(do_not_specialize=UNLIKE)
def sums_of_powers(
    hidden, head, codes, first, rounds, largest, sums, gathered,
    num_rows, num_ids, vocab, num_tiles, size, hidden_stride, head_stride,
    IS_WHOLE: tl.constexpr, HAS_IDS: tl.constexpr, SCALES: tl.constexpr, SQUARED: tl.constexpr, PLACES: tl.constexpr,
    ROWS: tl.constexpr, IDS: tl.constexpr, STEP: tl.constexpr, TILES: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Write a part's largest logit of a row, and its sums of powers relative to it, over ids that are not kept.

    Logits at the ids asked for are written to the places of their codes.
    """
    row_block, part = tl.program_id(0), tl.program_id(1)
    row_R = row_block * ROWS + tl.arange(0, ROWS)
    is_row_R = row_R < num_rows
    safe_R = tl.where(is_row_R, row_R, 0)
    largest_R = tl.full((ROWS,), float("-inf"), tl.float32)
    which_T = tl.arange(0, PLACES)
    sums_RT = tl.zeros((ROWS, PLACES), tl.float32)
    scale_T = tl.full((PLACES,), 1.0, tl.float32)
    for index in tl.static_range(len(SCALES)):
        scale_T = tl.where(which_T == index, SCALES[index], scale_T)

    for tile in range(part * TILES, min(part * TILES + TILES, num_tiles)):
        id_W = tile * IDS + tl.arange(0, IDS)
        safe_W = tl.where(id_W < vocab, id_W, 0)
        logits_RW = _tile(
            hidden, head, safe_R, safe_W, size, hidden_stride, head_stride, IS_WHOLE, ROWS, IDS, STEP, IN_FLOAT32
        )
        logits_RW = tl.where((id_W < vocab)[None, :], logits_RW, float("-inf"))
        if HAS_IDS:
            first_R = tl.load(first + tile * num_rows + safe_R)
            end_R = tl.load(first + (tile + 1) * num_rows + safe_R)
            for number in range(0, tl.load(rounds + tile * tl.num_programs(0) + row_block)):
                place_R = first_R + number
                is_here_R = (place_R < end_R) & is_row_R
                at_R = safe_R.to(tl.int64) * num_ids + place_R
                code_R = tl.load(codes + at_R, mask=is_here_R, other=-1)
                is_it_RW = id_W[None, :] == (code_R >> 1)[:, None]
                tl.store(gathered + at_R, tl.sum(tl.where(is_it_RW, logits_RW, 0.0), 1), mask=is_here_R)
                logits_RW = tl.where(is_it_RW & ((code_R & 1) == 1)[:, None], float("-inf"), logits_RW)

        before_R = largest_R
        largest_R = tl.maximum(largest_R, tl.max(logits_RW, 1))
        shift_R = tl.where(largest_R > float("-inf"), largest_R, 0.0)
        sums_RT *= tl.exp2((before_R - shift_R)[:, None] * scale_T[None, :])
        logits_RW -= shift_R[:, None]
        power_RW = logits_RW
        for index in tl.static_range(len(SCALES)):
            if SQUARED[index]:
                sum_R = tl.sum(power_RW * power_RW, 1)
            else:
                power_RW = tl.exp2(logits_RW * SCALES[index])
                sum_R = tl.sum(power_RW, 1)
            sums_RT += tl.where((which_T == index)[None, :], sum_R[:, None], 0.0)

    tl.store(largest + part * num_rows + row_R, largest_R, mask=is_row_R)
    at_RT = (part * num_rows + row_R)[:, None] * len(SCALES) + which_T[None, :]
    tl.store(sums + at_RT, sums_RT, mask=is_row_R[:, None] & (which_T < len(SCALES))[None, :])


@triton.jit(do_not_specialize=UNLIKE)
def gradient_of_logits(
    hidden, head, codes, first, rounds, shifts, factors, at_ids, gradient,
    num_rows, num_ids, vocab, first_tile, size, hidden_stride, head_stride, gradient_stride,
    IS_WHOLE: tl.constexpr, HAS_IDS: tl.constexpr, SCALES: tl.constexpr, SQUARED: tl.constexpr,
    ROWS: tl.constexpr, IDS: tl.constexpr, STEP: tl.constexpr, IN_FLOAT32: tl.constexpr,
):  # fmt: skip
    """Write a tile of the logits' gradient, in the dtype of the hidden states.

    It is the sum over T of factor * 2^(logit * scale - shift) at ids that are not kept. What is given for an id asked
    for takes the place of that sum if it is a kept one, and is added to it otherwise.
    """
    row_block, tile = tl.program_id(0), first_tile + tl.program_id(1)
    row_R = row_block * ROWS + tl.arange(0, ROWS)
    is_row_R = row_R < num_rows
    safe_R = tl.where(is_row_R, row_R, 0)
    id_W = tile * IDS + tl.arange(0, IDS)
    safe_W = tl.where(id_W < vocab, id_W, 0)
    logits_RW = _tile(
        hidden, head, safe_R, safe_W, size, hidden_stride, head_stride, IS_WHOLE, ROWS, IDS, STEP, IN_FLOAT32
    )
    gradient_RW = tl.zeros((ROWS, IDS), tl.float32)
    power_RW = logits_RW
    for index in tl.static_range(len(SCALES)):
        factor_R = tl.load(factors + index * num_rows + safe_R)
        if SQUARED[index]:
            gradient_RW += factor_R[:, None] * (power_RW * power_RW)
        else:
            shift_R = tl.load(shifts + index * num_rows + safe_R)
            power_RW = tl.exp2(logits_RW * SCALES[index] - shift_R[:, None])
            gradient_RW += factor_R[:, None] * power_RW
    if HAS_IDS:
        first_R = tl.load(first + tile * num_rows + safe_R)
        end_R = tl.load(first + (tile + 1) * num_rows + safe_R)
        for number in range(0, tl.load(rounds + tile * tl.num_programs(0) + row_block)):
            place_R = end_R - 1 - number  # backwards: a kept id before the same one as true token
            is_here_R = (place_R >= first_R) & is_row_R
            at_R = safe_R.to(tl.int64) * num_ids + place_R
            code_R = tl.load(codes + at_R, mask=is_here_R, other=-1)
            value_R = tl.load(at_ids + at_R, mask=is_here_R, other=0.0)
            is_it_RW = id_W[None, :] == (code_R >> 1)[:, None]
            kept_RW = tl.where(((code_R & 1) == 1)[:, None], 0.0, gradient_RW)
            gradient_RW = tl.where(is_it_RW, kept_RW + value_R[:, None], gradient_RW)
    at_RW = row_R.to(tl.int64)[:, None] * gradient_stride + (tl.program_id(1) * IDS + tl.arange(0, IDS))[None, :]
    is_in_RW = is_row_R[:, None] & (id_W < vocab)[None, :]
    tl.store(gradient + at_RW, gradient_RW.to(gradient.dtype.element_ty), mask=is_in_RW)
