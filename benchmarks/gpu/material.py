"""Tiny models and samples for the first call, and a speller that needs no tokenizers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import VIEWS, Shape, write_cache
from benchmarks.published_shapes import LLADA2_MINI, STUDENT, WEDLM_8B, Config
from benchmarks.students import qwen3_config
from tide_cache.arrays import Int64s
from tide_cache.config.sections import SignalsConfig
from tide_cache.config.settings import TeacherContext
from tide_cache.loading.cache import CacheSource
from tide_cache.modeling.backbone import new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Int32s, MaskedView, SamplePair
from tide_cache.shards import SignalKind
from tide_cache.teacher.capture import CaptureSettings
from tide_cache.views import draw_view

_TINY: Config = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
}  # fmt: skip
TINY: dict[str, Config] = {
    "qwen3": STUDENT | _TINY | {"model_type": "qwen3"},
    "a2d-qwen3": STUDENT | _TINY,
    "wedlm": WEDLM_8B | _TINY,
    "llada2_moe": LLADA2_MINI | _TINY | {
        "num_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 32
    },
}  # fmt: skip
CAPTURES: tuple[tuple[str, TeacherContext], ...] = (
    ("qwen3", "causal"), ("a2d-qwen3", "block"), ("wedlm", "block"), ("wedlm", "full"), ("llada2_moe", "full"),
    ("llada2_moe", "block"),
)  # fmt: skip


class SameIds:
    """Spells each teacher token as the student token of the same id."""

    def __init__(self, vocab_size: int) -> None:
        """Take the size of both vocabularies."""
        self.num_student_ids = vocab_size
        self.first_V: Int32s = np.arange(vocab_size, dtype=np.int32)

    def single(self, ids_J: Int32s, sizes_J: Int32s) -> Int32s:
        """Spell tokens that stand for one token; see `Speller`."""
        result_JP = np.full((len(ids_J), int(sizes_J.max(initial=1))), -1, np.int32)
        result_JP[sizes_J == 1, 0] = ids_J[sizes_J == 1]
        return result_JP

    def several(self, tuples_JM: Int64s) -> tuple[Int32s, Int64s]:
        """Spell tuples; see `Speller`."""
        return tuples_JM.ravel().astype(np.int32), np.full(len(tuples_JM), tuples_JM.shape[1])


def samples(root: Path, shape: Shape, num_views: int) -> tuple[list[SamplePair], list[list[MaskedView]]]:
    """Make samples, each with its views.

    Args:
        root: A folder that is made, for a cache.
        shape: Of the samples.
        num_views: Of each.
    """
    config = replace(VIEWS, num_views=num_views)
    records = CacheSource(root, write_cache(root, shape)).records(range(shape.num_samples), 0)
    pairs = [record.pair for record in records]
    return pairs, [[draw_view(pair, view, config) for view in range(num_views)] for pair in pairs]


def capture_settings(
    context: TeacherContext, vocab_size: int, kinds: tuple[SignalKind, ...], shared_vocab_size: int, batch_tokens: int
) -> CaptureSettings:
    """Return settings of a capture.

    Args:
        context: What the teacher is shown.
        vocab_size: Its last id is the mask.
        kinds: What is kept.
        shared_vocab_size: Ids below it mean the same to both.
        batch_tokens: Of a forward.
    """
    return CaptureSettings(
        context=context,
        block_size=32,
        mask_id=vocab_size - 1,
        shared_vocab_size=shared_vocab_size,
        views_per_forward=4,
        batch_tokens=batch_tokens,
        head_rows=1024,
        signals=SignalsConfig(kinds=kinds, temperatures=(1.0, 2.0), top_k=min(64, vocab_size // 4), top_p=1.0),
    )


def write_teacher(folder: Path, tokenizer: Path, raw: Config) -> None:
    """Write a checkpoint of random weights.

    Args:
        folder: Is made.
        tokenizer: Its tokenizer's.
        raw: Gives its sizes.
    """
    loaded = TextTokenizer.load(str(tokenizer))
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = qwen3_config(loaded.vocab_size, head_dim=raw["head_dim"], **{name: raw[name] for name in sizes})
    model = new_backbone(config, torch.float32, "cpu", seed=0).model
    save_student(folder, dict(model.state_dict()), config, loaded, {})
