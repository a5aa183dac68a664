"""How fast candidates of chunks are made from the rows of a forward: the processor's part of capturing them.

Chunks have one or two tokens of both sides. Rows keep 64 ids, drawn from the Falcon tokens of GSM8K, frequent ones more
often, and are spelled in tokens of Qwen. The warm-up spells every pair once, so the timed rounds look all of them up;
`_cold` is the first call of a spelling that has seen none. A capture lies between the two.

Shape suffixes as in `tide_cache.teacher.chunks`; W tokens that rows are drawn from.
"""

from collections.abc import Callable
from dataclasses import replace
from time import process_time

import numpy as np
import torch

from benchmarks.build import MASK
from benchmarks.options import Options, shared_file
from benchmarks.pairing import gsm8k
from benchmarks.timing import Timings
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.pairing import Spelling, TextTokenizer
from tide_cache.teacher.chunks import chunk_candidates
from tide_cache.teacher.tuples import AskedChunks, ChunkRows

SHARES, POSITIONS, TOP_K, SEED = (0, 10, 25), 4096, 64, 0
SIGNALS = SignalsConfig(kinds=("truth", "topk", "chunks"), temperatures=(1.0, 2.0), top_k=TOP_K, top_p=1.0, chunk_k=16)


def run(options: Options) -> dict[str, float]:
    """Make the same candidates again and again; seconds are those of the processor."""
    new_spelling, text_ids, student_ids = material(options.rows)
    spelling = new_spelling()
    asked = {share: draw(share, text_ids, student_ids) for share in SHARES}
    work = {
        f"positions_per_s_{share}": lambda one=one: chunk_candidates(replace(one), spelling)  # searches anew
        for share, one in asked.items()
    }
    timings = Timings(work, options.repeats, of_cpu=True)
    warm = {name: timings.rate(name, POSITIONS) for name in timings.names}
    return warm | {
        f"positions_per_s_{share}_cold": cold_rate(replace(one), new_spelling()) for share, one in asked.items()
    }


def cold_rate(asked: ChunkRows, spelling: Spelling) -> float:
    """Return positions a second of the first call, which spells every tuple."""
    start_s = process_time()
    chunk_candidates(asked, spelling)
    return POSITIONS / (process_time() - start_s)


def material(num_rows: int) -> tuple[Callable[[], Spelling], np.ndarray, np.ndarray]:
    """Return what makes a spelling from Falcon to Qwen, teacher tokens as text uses them, and some student tokens."""
    teacher = TextTokenizer.load(str(shared_file("tokenizers/falcon")), **MASK)
    student = TextTokenizer.load(str(shared_file("tokenizers/qwen")), **MASK)
    contents = [str(message.content) for row in gsm8k(num_rows) for message in row.messages]
    ids, others = (
        np.concatenate([one.ids_L for one in tokenizer.encode_many(contents)]) for tokenizer in (teacher, student)
    )
    return lambda: Spelling(teacher, student, teacher.vocab_size), ids, others


def draw(share: int, text_ids: np.ndarray, student_ids: np.ndarray) -> ChunkRows:
    """Draw rows and the chunks over them.

    Args:
        share: Percentage of chunks with two teacher tokens and two student tokens; the others have one of each.
        text_ids: Teacher tokens as text uses them.
        student_ids: Student tokens.
    """
    random = np.random.default_rng(SEED)
    num_chunks = int(POSITIONS / (1 + share / 100))
    size_A = np.ones(num_chunks, np.int32)
    size_A[random.permutation(num_chunks)[: POSITIONS - num_chunks]] = 2
    used = np.unique(text_ids)
    by_use = used[np.argsort(-np.bincount(text_ids)[used], kind="stable")]
    # The likelier a token is in text, the more often it is drawn; ids of a row differ.
    rarity_W = np.arange(8, 8 + min(512, len(by_use)))
    ids_NK = by_use[np.argsort(random.exponential(1.0, (POSITIONS, len(rarity_W))) * rarity_W, axis=1)[:, :TOP_K]]
    logits_NK = -np.sort(random.exponential(2.0, (POSITIONS, TOP_K)), axis=1)
    logprobs_NK = np.log(0.99) + logits_NK - np.log(np.exp(logits_NK).sum(axis=1, keepdims=True))
    temperatures = np.array(SIGNALS.temperatures)
    kept_NT = np.exp(logprobs_NK[:, :, None] / temperatures).sum(axis=1)
    tail_NT = np.full((POSITIONS, len(temperatures)), 0.01) ** (1 / temperatures)
    nothing_N = torch.zeros(POSITIONS)
    rows = RowSignals(
        truth_logprobs_N=nothing_N,
        is_top1_N=nothing_N.bool(),
        counts_N=torch.full((POSITIONS,), TOP_K),
        ids_NK=torch.from_numpy(ids_NK),
        logprobs_NK=torch.from_numpy(logprobs_NK.astype(np.float32)),
        log_tail_NT=torch.from_numpy(np.log(tail_NT).astype(np.float32)),
        log_partition_NT=torch.from_numpy(np.log(kept_NT + tail_NT).astype(np.float32)),
        tail_ids_ND=torch.zeros((POSITIONS, 0), dtype=torch.int64),
        tail_logprobs_ND=torch.zeros((POSITIONS, 0)),
    )
    chunks = AskedChunks(
        index_A=np.arange(num_chunks, dtype=np.int32),
        first_row_A=(np.cumsum(size_A) - size_A).astype(np.int32),
        teacher_size_A=size_A,
        student_size_A=size_A,
        student_ids_F=random.choice(student_ids, int(size_A.sum())).astype(np.int32),
    )
    return ChunkRows(chunks, ids_NK[:, 0].astype(np.int32), rows, SIGNALS)
