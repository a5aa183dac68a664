"""A cache of made-up samples in any shape: what the loader and the step are measured on, without a teacher.

Masks are drawn as a build draws them. What the teacher says is random and lawful: sizes and layout are those of a real
cache, and nothing that is measured on it depends on the values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tide_cache.config.sections import ViewsConfig
from tide_cache.config.settings import LANES
from tide_cache.loading.cache import CacheSource, cache_layout
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.loading.order import LaneOrder
from tide_cache.manifest import (
    CacheFolder,
    CacheIdentity,
    Manifest,
    PairingIdentity,
    ShardPlan,
    SignalsIdentity,
    StudentIdentity,
    ViewsIdentity,
    VocabSizes,
)
from tide_cache.records import (
    ChunkCandidates,
    Float32s,
    Int32s,
    MaskedView,
    SampleId,
    SamplePair,
    StudentBatch,
    Targets,
    TeacherSignal,
    TopK,
    ViewRecord,
)
from tide_cache.shards import SignalKind, encode_pairs, encode_signals
from tide_cache.views import draw_view
from tide_cache.views.masking import active_chunks

VIEWS = ViewsConfig(num_views=1, seed=0, time_sampling="stratified", schedule="linear", complementary=False)
CANDIDATES = 4
"""Of each chunk: about what a trained teacher has within the length of the true one."""
SHARD_SAMPLES = 256


@dataclass(frozen=True)
class Shape:
    """Of samples and of what is stored of them.

    Attributes:
        pipeline: `shared`: every token is a pair of equal ones, with `top_k` candidates. `cross`: chunks of one to
            three tokens on each side, with candidate chunks.
        num_samples: How many.
        student_length: Student tokens of each.
        prompt_length: How many of them, from the start, are never masked.
        vocab_size: Of both.
        top_k: Ids of each row.
        temperatures: Of tails and partitions.
        block_size: Tokens per block.
    """

    pipeline: Literal["shared", "cross"]
    num_samples: int
    student_length: int = 512
    prompt_length: int = 112
    vocab_size: int = 151_936
    top_k: int = 64
    temperatures: tuple[float, ...] = (1.0, 2.0)
    block_size: int = 32

    @property
    def kinds(self) -> tuple[SignalKind, ...]:
        """Signals that the cache holds."""
        return ("truth", "topk") if self.pipeline == "shared" else ("truth", "chunks")

    def identity(self) -> CacheIdentity:
        """What such a cache says of itself."""
        is_shared = self.pipeline == "shared"
        return CacheIdentity(
            corpus_hash="0" * 64,
            num_rows=self.num_samples,
            teacher={"model_type": "none"},
            teacher_tokenizer={},
            student_tokenizer={},
            vocab_sizes=VocabSizes(student=self.vocab_size, teacher=self.vocab_size),
            student=StudentIdentity(
                max_length=self.student_length, block_size=self.block_size, fill_last_block=False
            ),
            pairing=PairingIdentity(aligner="bytes", shared_vocab_size=self.vocab_size if is_shared else 0),
            views=ViewsIdentity(
                num_views=VIEWS.num_views, seed=VIEWS.seed, time_sampling="stratified", schedule="linear",
                complementary=False,
            ),
            signals=SignalsIdentity(
                kinds=self.kinds, top_k=self.top_k, top_p=1.0, temperatures=self.temperatures,
                logprob_dtype="float16", chunk_k=0 if is_shared else CANDIDATES,
            ),
        )  # fmt: skip


def write_cache(root: Path, shape: Shape) -> Manifest:
    """Write a complete cache."""
    random = np.random.default_rng(0)
    identity = shape.identity()
    plan = ShardPlan(
        num_rows=shape.num_samples, samples_per_shard=SHARD_SAMPLES, batch_tokens=1, head_rows=1, views_per_forward=1
    )
    folder = CacheFolder(root)
    folder.begin(identity, plan, ("plain",))
    for shard in range(plan.num_shards):
        indexes = list(plan.rows_of(shard))
        pairs = [_pair(index, shape, random) for index in indexes]
        records = []
        for pair in pairs:
            view = draw_view(pair, 0, VIEWS)
            records.append(ViewRecord(pair, view, _signal(pair, view, shape, random)))
        pairs_header, signals_header = (folder.header(table, shard) for table in ("pairs", "plain"))
        folder.commit(encode_pairs(pairs_header, indexes, pairs, identity.shard_rules), {})
        folder.commit(
            encode_signals(signals_header, indexes, [[record] for record in records], identity.shard_rules, "float16"),
            {},
        )
    return folder.finish(("plain",))


@dataclass(frozen=True)
class Loading:
    """A cache as training reads it.

    Attributes:
        root: Its folder.
        manifest: Its manifest.
        signals: What is decoded of it; None for all.
    """

    root: Path
    manifest: Manifest
    signals: tuple[SignalKind, ...] | None = None

    def layout(self) -> BatchLayout:
        """Return how records become batches."""
        identity = self.manifest.identity
        last = identity.vocab_sizes.student - 1
        return cache_layout(self.manifest, mask_id=last, pad_id=last - 1, block_size=identity.student.block_size)

    def batches(self, count: int, size: int) -> list[tuple[StudentBatch, Targets]]:
        """Load the first batches of the first epoch, in the order of training."""
        source = CacheSource(self.root, self.manifest, signals=self.signals)
        order, layout = LaneOrder(source.groups, self.manifest.identity.cache_id, 0, LANES), self.layout()
        batches = []
        for number in range(count):
            visits = order.visits(range(number * size, (number + 1) * size))
            batches.append(collate(source.records([visit.sample for visit in visits], 0), layout))
        return batches


def _pair(index: int, shape: Shape, random: np.random.Generator) -> SamplePair:
    length = shape.student_length
    sizes = np.ones(length, int) if shape.pipeline == "shared" else random.integers(1, 4, length)
    ends = np.cumsum(sizes)
    ends = np.unique(np.minimum(ends, length))
    student_C2 = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    teacher_C2 = student_C2
    ids_L = random.integers(0, shape.vocab_size - 2, length).astype(np.int32)
    teacher_ids_M = ids_L
    if shape.pipeline == "cross":
        teacher_ends = np.cumsum(random.integers(1, 4, len(ends)))
        teacher_C2 = np.stack([np.concatenate([[0], teacher_ends[:-1]]), teacher_ends], axis=1)
        teacher_ids_M = random.integers(0, shape.vocab_size - 2, teacher_ends[-1]).astype(np.int32)
    chunks_C4 = np.concatenate([teacher_C2, student_C2], axis=1).astype(np.int32)
    is_supervised_L = np.arange(length) >= shape.prompt_length
    return SamplePair(SampleId(f"made-up:{index}"), ids_L, is_supervised_L, teacher_ids_M, chunks_C4)


def _signal(pair: SamplePair, view: MaskedView, shape: Shape, random: np.random.Generator) -> TeacherSignal:
    num_rows = int(view.is_teacher_masked_M.sum())
    truth_N = np.log(random.uniform(0.05, 0.95, num_rows)).astype(np.float32)
    topk = chunks = None
    if shape.pipeline == "shared":
        is_pair_M = np.zeros(len(pair.teacher_ids_M), bool)
        is_pair_M[pair.chunks_C4[:, 0]] = True
        rows_R = np.flatnonzero(is_pair_M[view.is_teacher_masked_M]).astype(np.int32)
        topk = _topk(rows_R, shape, random)
    else:
        chunks = _chunks(np.flatnonzero(active_chunks(pair, view)).astype(np.int32), pair, shape, random)
    return TeacherSignal(truth_N, np.zeros(num_rows, bool), topk, chunks=chunks)


def _topk(rows_R: Int32s, shape: Shape, random: np.random.Generator) -> TopK:
    logprobs_RK, log_tail_RT, log_partition_RT = _distributions(len(rows_R), shape.top_k, shape, random)
    first_R1 = random.integers(0, shape.vocab_size, (len(rows_R), 1))
    ids_RK = (first_R1 + np.arange(shape.top_k) * (shape.vocab_size // shape.top_k)) % shape.vocab_size
    return TopK(
        rows_R, np.full(len(rows_R), shape.top_k, np.int32), ids_RK.astype(np.uint32).ravel(), logprobs_RK.ravel(),
        log_tail_RT, log_partition_RT,
    )  # fmt: skip


def _chunks(chunks_A: Int32s, pair: SamplePair, shape: Shape, random: np.random.Generator) -> ChunkCandidates:
    logprobs_AJ, log_tail_AT, log_partition_AT = _distributions(len(chunks_A), CANDIDATES, shape, random)
    sizes_A = pair.chunks_C4[chunks_A, 3] - pair.chunks_C4[chunks_A, 2]
    num_ids = int(sizes_A.sum()) * CANDIDATES
    # Consecutive ids: candidates of a chunk differ, and so do their tokens.
    ids_F = (random.integers(0, shape.vocab_size) + np.arange(num_ids)) % shape.vocab_size
    return ChunkCandidates(
        chunks_A, np.full(len(chunks_A), CANDIDATES, np.int32), ids_F.astype(np.uint32), logprobs_AJ.ravel(),
        log_tail_AT, log_partition_AT,
    )  # fmt: skip


def _distributions(
    num_rows: int, num_kept: int, shape: Shape, random: np.random.Generator
) -> tuple[Float32s, Float32s, Float32s]:
    """Kept log-probs, most likely first, with tails and partitions; a hundredth of the mass is not kept."""
    weights_RK = np.exp(-np.sort(random.exponential(2.0, (num_rows, num_kept)), axis=1))
    probs_RK = 0.99 * weights_RK / weights_RK.sum(axis=1, keepdims=True)
    tail_RT = np.full((num_rows, len(shape.temperatures)), 0.01) ** (1 / np.array(shape.temperatures))
    kept_RT = np.stack([(probs_RK ** (1 / t)).sum(axis=1) for t in shape.temperatures], axis=1)
    return tuple(np.log(x).astype(np.float32) for x in (probs_RK, tail_RT, kept_RT + tail_RT))  # type: ignore[return-value]
