"""Four views of a sample on one clean copy against four forwards of a view each: time, and that they say the same."""

import numpy as np
import torch
from transformers import Qwen3Config

from benchmarks.build import MASK
from benchmarks.options import Options, shared_file
from benchmarks.pairing import gsm8k
from benchmarks.timing import Timings
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.modeling.backbone import new_backbone
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.records import SamplePair, TeacherSignal
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views import draw_view

NUM_VIEWS, BLOCK_SIZE, BATCH_TOKENS = 4, 32, 4096
MAX_ROWS = 4
"""Samples of a round: a Qwen3 of some layers takes seconds for them on one core."""
VOCAB = 4096
"""Ids are folded into it, the last one is the mask: with layers this small a real vocabulary's head, which costs
the same for both, would hide them; in a teacher of 8 billion weights it has a share of 8 %."""


def run(options: Options) -> dict[str, float]:
    """Capture the same views packed and one by one, in turns."""
    tokenizer = TextTokenizer.load(str(shared_file("tokenizers/qwen")), **MASK)
    rows = gsm8k(min(options.rows, MAX_ROWS))
    students = encode_student(rows, tokenizer, max_length=512, block_size=BLOCK_SIZE, fill_last_block=True).pairs
    pairs = [_as_teacher(pair) for pair in students]
    config = ViewsConfig(NUM_VIEWS, seed=0, time_sampling="stratified", schedule="linear", complementary=False)
    views = [[draw_view(pair, view, config) for view in range(NUM_VIEWS)] for pair in pairs]
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=512, intermediate_size=1536, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    backbone = new_backbone(config, torch.float32, "cpu", seed=0)

    def capture(views_per_forward: int) -> list[list[TeacherSignal]]:
        how = CaptureSettings(
            "block", BLOCK_SIZE, VOCAB - 1, 0, views_per_forward, BATCH_TOKENS, 1024,
            SignalsConfig(kinds=("truth",), temperatures=(1.0,)),
        )  # fmt: skip
        return Teacher(backbone, how).signals(pairs, views)

    difference = _difference(capture(NUM_VIEWS), capture(1))
    timings = Timings({"packed": lambda: capture(NUM_VIEWS), "separate": lambda: capture(1)}, options.repeats)
    return {
        "separate_s": 1 / timings.rate("separate", 1),
        "packed_s": 1 / timings.rate("packed", 1),
        "packed_ratio": timings.ratio("packed", "separate"),
        "max_abs_diff": difference,
        "mean_tokens": float(np.mean([len(pair.teacher_ids_M) for pair in pairs])),
    }


def _as_teacher(pair: SamplePair) -> SamplePair:
    """Let a sample be its own teacher side, every token a chunk."""
    at_L = np.arange(len(pair.student_ids_L), dtype=np.int32)
    chunks_C4 = np.stack([at_L, at_L + 1, at_L, at_L + 1], axis=1)[pair.is_supervised_L]
    ids_L = pair.student_ids_L % (VOCAB - 1)
    return SamplePair(pair.sample_id, ids_L, pair.is_supervised_L, ids_L, chunks_C4)


def _difference(one: list[list[TeacherSignal]], other: list[list[TeacherSignal]]) -> float:
    """Return the largest difference in log p(true) of any masked token."""
    both = zip((s for of in one for s in of), (s for of in other for s in of), strict=True)
    return max(float(np.abs(a.truth_logprobs_N - b.truth_logprobs_N).max(initial=0)) for a, b in both)
