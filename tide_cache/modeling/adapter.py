"""A model as the rest of the package sees it, a `Backbone`, and what makes one from a checkpoint, an `Adapter`.

The output head is separate: callers take hidden states of the rows they need and never see a [B, L, V] tensor.

Shape suffixes: B samples, S packed positions, D hidden size, V vocabulary, W vocabulary with padding.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import Cache, DynamicCache

from tide_cache.config.sections import LoadingConfig
from tide_cache.config.settings import AttentionKind
from tide_cache.errors import ModelError, first_line
from tide_cache.families import FAMILIES, Family
from tide_cache.hub import Repository
from tide_cache.modeling.packing import PackedInput
from tide_cache.modeling.shifting import RememberedOutputs, at_own_tokens

PADDED = "num_token_ids"
"""The field of config.json by which a model says that the rows of its vocabulary from this number on are padding."""


def num_token_ids(config: Any, origin: str = "config.json") -> int:
    """Return how many ids may be sampled and are scored: all rows, unless the configuration says that some are padding.

    Args:
        config: A model's configuration.
        origin: Where it stands, for the message.

    Raises:
        ModelError: It states an impossible number.
    """
    num_rows, stated = int(config.vocab_size), getattr(config, PADDED, None)
    if stated is None:
        return num_rows
    if not isinstance(stated, int) or not 0 < stated <= num_rows:
        raise ModelError(f"{origin}: found num_token_ids = {stated!r}, expected 1 to vocab_size, which is {num_rows}")
    return stated


class Backbone(nn.Module):
    """A denoiser: hidden states from packed inputs, and the output head's weight."""

    def __init__(self, model: nn.Module, attention: AttentionKind = "sdpa", is_shifted: bool = False):
        """Wrap a model.

        Args:
            model: Its trunk is `model.model`.
            attention: The kernel of its attention.
            is_shifted: Whether its output at position i - 1 predicts token i.
        """
        super().__init__()
        self.model = model
        self._attention = attention
        self._is_shifted = is_shifted

    @property
    def config(self) -> Any:
        """The model's configuration; has at least `vocab_size` and `max_position_embeddings`."""
        return self.model.config

    @property
    def head_VD(self) -> torch.Tensor:
        """Weight of the output head, without rows of padding: what is not in it is neither sampled nor scored."""
        raise NotImplementedError

    @property
    def padded_head_WD(self) -> torch.Tensor:
        """Weight of the output head as it is stored, for whoever trains it; the embedding itself when tied."""
        return self.head_VD

    @property
    def device(self) -> torch.device:
        """The device of inputs and hidden states."""
        return self.head_VD.device

    def compile_trunk(self) -> None:
        """Let torch.compile make kernels for everything but the head, for any shape, at the first forward."""
        trunk: nn.Module = self.model.model  # type: ignore[assignment]
        trunk.compile(dynamic=True)

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for `forward`."""
        return RememberedOutputs() if self._is_shifted else DynamicCache()

    def forward(self, packed: PackedInput, cache: Cache | None = None) -> torch.Tensor:
        """Return the last hidden states [B, S, D], after the final norm; each predicts the token at its place.

        Args:
            packed: The model's input.
            cache: Keys and values of tokens before it, from `new_cache`; grows by those of `packed`, whose mask
                [B, 1, Q, S] has a key for every token in the cache, before those of its own tokens.
        """
        outputs_BSD = self.outputs(packed, cache)
        if not self._is_shifted:
            return outputs_BSD
        assert cache is None or isinstance(cache, RememberedOutputs), "a cache that new_cache did not make"
        return at_own_tokens(outputs_BSD, packed, cache)

    def outputs(self, packed: PackedInput, cache: Cache | None = None) -> torch.Tensor:
        """Return the last hidden states [B, S, D] where the model outputs them, whichever token they predict."""
        raise NotImplementedError


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Switch gradients and dropout off, and leave the model in the mode it was in."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(was_training)


@dataclass(frozen=True)
class CheckpointInfo:
    """The contents of a checkpoint's config.json, read without loading weights.

    Attributes:
        location: Folder or hub name, as given.
        model_type: The family's name: the published model_type, unless another family has the same.
        config: The configuration that loads it.
        mask_id: The mask token it was trained with, if config.json or its authors' code says so.
        repository: Location of its files; None for the folder `location`.
        converted_from: What `tide-cache convert` made it from, if it was not trained since.
        block_size: Block size of its training, if config.json states one.
    """

    location: str
    model_type: str
    config: Any
    mask_id: int | None = None
    repository: Repository | None = None
    converted_from: str | None = None
    block_size: int | None = None

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return Path(self.location) if self.repository is None else self.repository.folder

    @property
    def commit(self) -> str | None:
        """Commit of a hub's repository; None for a folder."""
        return None if self.repository is None else self.repository.commit

    @property
    def vocab_size(self) -> int:
        """Ids that may be sampled and are scored; see `num_token_ids`."""
        return num_token_ids(self.config)

    def fit_faults(self, vocab_size: int, length: int, who: str) -> list[str]:
        """Return what does not fit: a vocabulary larger than the embedding, or sequences above the model's limit.

        Args:
            vocab_size: One past the largest token id.
            length: Longest sequence, in tokens.
            who: Section of the run file, for the message.
        """
        faults = []
        if vocab_size > self.vocab_size:
            faults.append(
                f"{who}: the tokenizer has ids up to {vocab_size - 1}, the checkpoint {self.location} has "
                f"{self.vocab_size} embeddings; use the checkpoint's own tokenizer, or a mask token it already has"
            )
        limit = int(self.config.max_position_embeddings)
        if length > limit:
            faults.append(f"{who}.max_length: found {length}, the model's limit is {limit}; lower max_length")
        return faults

    def mask_faults(self, mask_id: int, mask_token: str, who: str) -> list[str]:
        """Return a fault if the checkpoint was trained with another mask token.

        Args:
            mask_id: Id of the tokenizer's mask token.
            mask_token: Its text.
            who: Section of the run file, for the message.
        """
        if self.mask_id in (None, mask_id):
            return []
        return [
            f"{who}: found the mask token {mask_token!r}, id {mask_id}; the checkpoint {self.location} "
            f"({self.model_type}) was trained with id {self.mask_id}. Leave mask_token out to use that one, or state "
            "mask_token_id in config.json if this checkpoint was trained with another"
        ]

    def block_faults(self, block_size: int | None, who: str) -> list[str]:
        """Return a fault if the checkpoint was trained with another block size.

        Args:
            block_size: The run's; None if it states none.
            who: Section of the run file, for the message.
        """
        if None in (self.block_size, block_size) or self.block_size == block_size:
            return []
        field = FAMILIES[self.model_type].block_field
        return [
            f"{who}.block_size: found {block_size}; the checkpoint {self.location} ({self.model_type}) was trained "
            f"with blocks of {self.block_size} ({field} in its config.json). Use {self.block_size}, or "
            f"state another {field} in config.json if this checkpoint was trained with it"
        ]


@dataclass(frozen=True)
class LoadOptions:
    """How weights are loaded.

    Attributes:
        dtype: Type of the parameters.
        device: Device of the parameters.
        loading: How they are stored; if layers are spread over all GPUs, `device` is ignored.
    """

    dtype: torch.dtype
    device: str
    loading: LoadingConfig


class Adapter(Protocol):
    """What a family of checkpoints needs to be a teacher; `docs/teachers.md` says how to write one."""

    @property
    def family(self) -> Family:
        """The family it loads, as the table of families describes it."""

    def read_config(self, raw: Mapping[str, Any], location: str) -> Any:
        """Return the configuration that config.json describes.

        Args:
            raw: Content of config.json.
            location: Location of the checkpoint, for messages.

        Raises:
            ModelError: Something is missing, or would be computed wrongly.
        """

    def load(self, info: CheckpointInfo, options: LoadOptions) -> Backbone:
        """Load the weights, which are in `info.folder` by now.

        Raises:
            ModelError: Weights are missing, left over, or of another shape; lists them.
        """


def no_room(info: CheckpointInfo, options: LoadOptions, error: Exception) -> ModelError:
    """Return the error for weights that do not fit into the device's memory, with what helps."""
    dtype, reason = str(options.dtype).removeprefix("torch."), first_line(error)
    return ModelError(
        f"{info.location}: no room on {options.device} for the weights in {dtype}: {reason} Use a larger device, "
        "teacher.dtype = 'bfloat16', or, for a stock architecture, teacher.device_map = 'auto' or teacher.quantisation."
    )
