"""Our models in the harness's own command: `lm_eval --model tide_cache --model_args pretrained=...`.

Releases after 0.4.13 find the class by the entry point `lm_eval.models` of this distribution. 0.4.13 has no plug-ins:
there `tide_cache.lm_eval_hook` adds the name to its registry.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from tide_cache.config.settings import Precision, ThinkPrefix
from tide_cache.decoding.step import DecodingCounts, total_counts
from tide_cache.errors import RunFileError, TideCacheError, fault_list
from tide_cache.evaluation.harness.model import BlockDiffusionLM, ModelOptions
from tide_cache.evaluation.harness.suite import TaskSettings
from tide_cache.evaluation.trained import open_trained
from tide_cache.modeling.backbone import DTYPES, load_backbone, resolve_device
from tide_cache.training.distributed import find_world, rank_device
from tide_cache.training.meeting import join

_COMMANDS = ("lm_eval", "lm-eval")
"""Names under which lm-eval's command runs; of its folder, where it is run as a module."""


class TideCacheLM(BlockDiffusionLM):
    """A checkpoint by name; the options are those of `eval-tasks`, under Python's names."""

    def __init__(
        self,
        pretrained: str,
        *,
        block_size: int | None = None,
        threshold: float | None = None,
        steps_per_block: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_samples: int = 128,
        think_prefix: ThinkPrefix = "template",
        seed: int = 0,
        dtype: Precision = "float32",
        device: str | None = None,
        batch_size: int | str = 32,
        max_batch_size: int | None = None,
    ) -> None:
        """Open and load a checkpoint.

        Args:
            pretrained: Folder that `train` or `export-model` wrote, or a hub name.
            block_size: Tokens per block; by default as trained.
            threshold: Probability above which answers keep tokens at once.
            steps_per_block: Most forwards per block; by default one for each token.
            temperature: Of draws; by default the task's.
            top_k: Draw from this many likeliest tokens.
            top_p: Draw from the likeliest tokens that reach this probability.
            num_samples: Sets of masked tokens per block of a likelihood.
            think_prefix: What precedes an answer if a chat template is applied.
            seed: Seed of masks and draws.
            dtype: Type of the weights: float32 or bfloat16.
            device: Their device; by default this process's GPU, or the CPU.
            batch_size: Sequences per forward. `auto` is 32.
            max_batch_size: Unused; lm-eval passes it to every model.

        Raises:
            RunFileError: An option is impossible; lists all, before weights are loaded.
            TideCacheError: There is no usable model or tokenizer.
        """
        size = _whole(batch_size)
        if dtype not in DTYPES:
            raise RunFileError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        model = open_trained(str(pretrained), block_size, dtype=dtype)
        decoding = (threshold, temperature, top_k, top_p, steps_per_block)
        options = ModelOptions(model.block_size, seed, num_samples, think_prefix, *decoding)
        if faults := options.faults():
            raise RunFileError(fault_list("No answer can be written:", faults, "Nothing was loaded."))
        model.require_fits(model.block_size)
        world = find_world()
        place = rank_device(world, resolve_device(device or "auto"))
        if world.size > 1:
            join(world, "cpu")  # ranks exchange little, and nothing on the GPU
        backbone = load_backbone(model.info, DTYPES[dtype], place)
        self._counted: DecodingCounts | None = None
        super().__init__(backbone, model.tokenizer, options, TaskSettings("--tasks", batch_size=size), world)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Make a model as the command asks for it; a user's mistake ends the command with a message."""
        with _without_traceback():
            made: Self = super().create_from_arg_string(arg_string, additional_config)
        return made

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Make a model as the command asks for it; a user's mistake ends the command with a message."""
        with _without_traceback():
            made: Self = super().create_from_arg_obj(arg_dict, additional_config)
        return made

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Collect what the ranks have on one of them, and with it what each has counted so far."""
        parts = super().gather_object((obj, self.counts), dst)
        if parts is None:
            return None
        self._counted = total_counts(counts for _, counts in parts)
        return [part for part, _ in parts]

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into its results: the options of decoding, and its counts."""
        return {
            "tide_cache_options": asdict(self._options),
            "tide_cache_decoding": (self._counted or self.counts).figures(),
        }


@contextmanager
def _without_traceback() -> Iterator[None]:
    """End lm-eval's command as ours end; other programs get the error itself."""
    try:
        yield
    except TideCacheError as error:
        program = Path(sys.argv[0])
        if (program.parent if program.name == "__main__.py" else program).name not in _COMMANDS:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _whole(batch_size: int | str) -> int:
    text = str(batch_size)
    if text.startswith("auto"):
        return TaskSettings.batch_size
    if not text.isdecimal() or int(text) < 1:
        raise RunFileError(f"batch_size is {batch_size!r}; expected a whole number from 1, or auto, which is 32")
    return int(text)
