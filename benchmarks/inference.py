"""What a student saves when it is used: tokens per second and memory of sampling, compared with its teachers.

One sequence, one token a step, as the paper times it; each model also without kept keys and values; and the student by
threshold (`thresholds.py`). Time: all take their turn in every round. Memory: each model in a separate process, what
it grew by from before the weights were made; on a GPU the allocator's peak.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import torch

from benchmarks import thresholds
from benchmarks.options import Options
from benchmarks.processes import in_own_process, peak_rss
from benchmarks.published_shapes import (
    LLADA2_MINI,
    SMALL_LLADA2,
    SMALL_STUDENT,
    SMALL_WEDLM,
    STUDENT,
    WEDLM_8B,
    Config,
    random_backbone,
)
from benchmarks.timing import Timings
from tide_cache.evaluation import generate
from tide_cache.modeling.backbone import DTYPES, Backbone

BLOCK_SIZE = 32

_TINY = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1024,
}  # fmt: skip


@dataclass(frozen=True)
class InferenceSize:
    """What is sampled, and where.

    Attributes:
        models: Configurations: the student's, and of each teacher.
        prompt_length: Tokens.
        new_tokens: Tokens.
        precision: Of the weights.
        device: Where.
    """

    models: dict[str, Config] = field(
        default_factory=lambda: {"student": SMALL_STUDENT, "wedlm": SMALL_WEDLM, "llada2": SMALL_LLADA2}
    )
    prompt_length: int = 128
    new_tokens: int = 32
    precision: str = "float32"
    device: str = "cpu"

    def backbone(self, name: str) -> Backbone:
        """A model with random weights."""
        return random_backbone(self.models[name], DTYPES[self.precision], self.device)

    def sample(self, backbone: Backbone, use_cache: bool = True) -> None:
        """Continue a prompt to the end."""
        last = int(backbone.config.vocab_size) - 1
        (tokens,) = generate(
            backbone, [[1 + n % 1000 for n in range(self.prompt_length)]], mask_id=last, pad_id=last - 1, stop_ids=(),
            block_size=BLOCK_SIZE, max_new_tokens=self.new_tokens, steps_per_block=BLOCK_SIZE, use_cache=use_cache,
        )  # fmt: skip
        assert len(tokens) == self.new_tokens


PUBLISHED = InferenceSize(
    {"student": STUDENT, "wedlm": WEDLM_8B, "llada2": LLADA2_MINI}, 512, 128, precision="bfloat16", device="cuda"
)


def run(options: Options) -> dict[str, float]:
    """Compare on a CPU core, with small models whose weights have the published ratio, or measure a given student."""
    torch.set_num_threads(1)
    if options.student is not None:
        return thresholds.measure(thresholds.trained_answering(options.student), options.repeats)
    by_threshold = thresholds.measure(thresholds.random_answering(), options.repeats)
    return measure(InferenceSize(), options.repeats) | by_threshold


def measure(size: InferenceSize, repeats: int) -> dict[str, float]:
    """Return tokens per second, with and without the cache, and peaks of all models, and what a student saves.

    Args:
        size: What is sampled.
        repeats: Timed rounds.
    """
    # Peaks first: the models that are timed together would leave no room on a GPU.
    figures = {f"{name}_peak_mib": in_own_process(peak, size, name) / 2**20 for name in size.models}
    work = {}
    for name in size.models:
        backbone = size.backbone(name)
        work[name] = partial(size.sample, backbone)
        work[f"{name}_uncached"] = partial(size.sample, backbone, use_cache=False)
    timings = Timings(work, repeats, of_cpu=size.device == "cpu")
    figures |= {f"{name}_tokens_per_s": timings.rate(name, size.new_tokens) for name in work}
    for name in size.models:
        figures[f"{name}_cache_ratio"] = timings.ratio(f"{name}_uncached", name)
        if name != "student":
            figures[f"{name}_speed_ratio"] = timings.ratio(name, "student")
            figures[f"{name}_memory_ratio"] = figures[f"{name}_peak_mib"] / figures["student_peak_mib"]
    return figures


def peak(size: InferenceSize, name: str) -> int:
    """Bytes at the peak of sampling, weights included."""
    torch.set_num_threads(1)
    if size.device != "cpu":
        size.sample(size.backbone(name))
        return torch.cuda.max_memory_allocated()
    tiny = replace(size, models={name: size.models[name] | _TINY}, new_tokens=1)
    tiny.sample(tiny.backbone(name))  # libraries load parts of theirs when first used
    before = peak_rss()
    size.sample(size.backbone(name))
    return peak_rss() - before
