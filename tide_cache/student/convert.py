"""Conversion of a causal checkpoint into a start for block-diffusion students: the same weights, and a mask token.

Only the attention mask distinguishes a denoiser from a causal model, and it is not stored. What is missing is a token
for "not known yet": its name in the tokenizer and its row in the embedding. A converted model predicts nothing useful
until it is trained. A conversion can also remove layers and change the tokenizer, so that a large checkpoint becomes a
start for a small student.

Shape suffixes: V vocabulary, D hidden size.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tide_cache.disk import require_room
from tide_cache.errors import ModelError, RunFileError
from tide_cache.modeling.adapter import PADDED, num_token_ids
from tide_cache.modeling.backbone import CheckpointInfo, fetch_weights, load_backbone, read_checkpoint
from tide_cache.modeling.checkpoint import PUBLISHED_TYPE, save_student
from tide_cache.modeling.fingerprint import weights_bytes
from tide_cache.modeling.gguf import find_gguf, unpack_gguf
from tide_cache.modeling.safetensors_loading import stored_dtype, weight_names
from tide_cache.pairing import TextTokenizer
from tide_cache.places import require_new
from tide_cache.student.cutting import evenly_spaced, keep_layers, require_layers, rows_for_tokenizer
from tide_cache.version import __version__


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        model_type: Type of the student.
        mask_token: Its mask token.
        mask_id: That token's id.
        is_mask_added: Whether the tokenizer lacked it, so that its row of the embedding is new.
        num_rows_before: Rows of the source's embedding.
        num_rows: Rows of the student's embedding.
        num_ids: Rows that are no padding, where `pad_vocab` was asked for; else all.
        layers: Which layers of the source the student has; None for all.
        tokenizer: The tokenizer for which new rows were made; None for the source's own.
    """

    model_type: str
    mask_token: str
    mask_id: int
    is_mask_added: bool
    num_rows_before: int
    num_rows: int
    num_ids: int
    layers: tuple[int, ...] | None = None
    tokenizer: str | None = None


def convert(
    source: str,
    out: Path,
    *,
    mask_token: str | None = None,
    chat_template: Path | None = None,
    revision: str | None = None,
    num_layers: int | None = None,
    layers: Sequence[int] | None = None,
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
    gguf: str | None = None,
    pad_vocab: int | None = None,
) -> Conversion:
    """Write a student for `train`, `eval` and `generate`, with the weights of a causal checkpoint.

    Kept weights are identical to the bit, except the row of a mask token that the tokenizer lacked.

    Args:
        source: Folder or hub name of a Qwen3, Qwen2 or Llama checkpoint with its tokenizer, or of GGUF files of one; or
            such a file.
        out: Folder to write; must not exist.
        mask_token: The mask token's text; by default the tokenizer's own, otherwise `<|mask|>`.
        chat_template: Jinja file for a tokenizer without a chat template.
        revision: Branch, tag or commit of the source's hub repository.
        num_layers: Keep this many layers, evenly spaced from the first to the last.
        layers: Keep these layers, numbered from 0.
        tokenizer: Folder or hub name of another tokenizer for the student; see `rows_for_tokenizer`.
        tokenizer_revision: Branch, tag or commit of that tokenizer's hub repository.
        gguf: Name of the GGUF file, if a folder or hub repository holds several.
        pad_vocab: Make the embedding's rows a multiple of this; all rows without a token are never sampled or scored.

    Raises:
        RunFileError: `out` exists, there are no such layers, or the tokenizer has another mask token than `mask_token`.
        ModelError: No causal checkpoint of a supported family, or its tokenizer is not its own.
        PairingError: A tokenizer cannot be used.
        WriteError: The disk has no room for the model, or refuses it; no folder is left behind.
    """
    require_new(out)
    if num_layers is not None and layers is not None:
        raise RunFileError("--num-layers and --layers: give one of them")
    if tokenizer_revision is not None and tokenizer is None:
        raise RunFileError("--tokenizer-revision: is of --tokenizer, which is not given; the source has --revision")
    other = None if tokenizer is None else _Other(tokenizer, tokenizer_revision)
    if (file := find_gguf(source, revision, gguf)) is None:
        return _convert(source, out, source, mask_token, chat_template, revision, num_layers, layers, other, pad_vocab)
    with tempfile.TemporaryDirectory(prefix="tide-cache-gguf-") as folder:
        unpack_gguf(file.path, Path(folder))
        named, commit = str(file.path), file.commit
        return _convert(folder, out, named, mask_token, chat_template, commit, num_layers, layers, other, pad_vocab)


@dataclass(frozen=True)
class _Other:
    """Another tokenizer for the student."""

    location: str
    revision: str | None


def _convert(
    source: str,
    out: Path,
    named: str,
    mask_token: str | None,
    chat_template: Path | None,
    revision: str | None,
    num_layers: int | None,
    layers: Sequence[int] | None,
    other: _Other | None,
    pad_vocab: int | None,
) -> Conversion:
    """Convert a checkpoint in Hugging Face layout; `named` is what the user calls it."""
    info = _read_causal(source, named, revision)
    options: dict[str, Any] = {"mask_token": mask_token, "add_mask_token": True, "chat_template": chat_template}
    if other is None:
        own = tokenizer = TextTokenizer.load(source, revision=revision, **options)
    else:
        own = TextTokenizer.load(source, revision=revision, add_mask_token=True, chat_template=chat_template)
        tokenizer = TextTokenizer.load(other.location, revision=other.revision, **options)
    if tokenizer.own_mask_token not in (None, tokenizer.mask_token):
        raise RunFileError(
            f"--mask-token {mask_token!r}: the tokenizer of {other.location if other else named} has a mask token "
            f"already, {tokenizer.own_mask_token!r}; leave --mask-token out to keep it"
        )
    _require_own_tokenizer(info, own, named)
    if num_layers is not None:
        layers = evenly_spaced(num_layers, int(info.config.num_hidden_layers))
    elif layers is not None:
        require_layers(layers, int(info.config.num_hidden_layers))
    stated = info.repository.stated_bytes(weight_names(info.folder)) if info.repository else 0
    require_room(out, weights_bytes(info.folder) or stated, "the model")
    fetch_weights(info)
    num_rows_before = int(info.config.vocab_size)
    backbone = load_backbone(info, stored_dtype(info.folder), "cpu")
    model, config = backbone.model, backbone.config
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        if other is not None:
            _change_tokenizer(model, own, tokenizer)
        elif tokenizer.is_mask_added:
            _add_row(model, tokenizer.mask_id)
        if pad_vocab is not None:
            _pad_rows(model, tokenizer.vocab_size, pad_vocab)
    weights: dict[str, torch.Tensor] = dict(model.state_dict())
    if layers is not None:
        weights = keep_layers(weights, config, layers)
    provenance: dict[str, Any] = {
        "tide_cache_version": __version__,
        "converted_from": Path(named).name,
        "revision": info.commit or revision,
    }
    provenance |= {} if layers is None else {"layers": list(layers)}
    if other is not None:
        provenance |= {"tokenizer_from": Path(other.location).name}
        provenance |= {} if tokenizer.commit is None else {"tokenizer_revision": tokenizer.commit}
    save_student(out, weights, config, tokenizer, provenance)
    return Conversion(
        model_type=PUBLISHED_TYPE[info.model_type][0],
        mask_token=tokenizer.mask_token,
        mask_id=tokenizer.mask_id,
        is_mask_added=tokenizer.is_mask_added,
        num_rows_before=num_rows_before,
        num_rows=int(config.vocab_size),
        num_ids=num_token_ids(config),
        layers=None if layers is None else tuple(layers),
        tokenizer=None if other is None else other.location,
    )


def _read_causal(source: str, named: str, revision: str | None) -> CheckpointInfo:
    info = read_checkpoint(source, revision)
    if info.model_type not in PUBLISHED_TYPE:
        is_student = info.model_type in {name for name, _ in PUBLISHED_TYPE.values()}
        raise ModelError(
            f"{named}: found model_type {info.model_type!r}, expected a causal one of "
            f"{', '.join(sorted(PUBLISHED_TYPE))}"
            + (
                "; this is a denoiser already, train it as it is. If its tokenizer does not name its mask token, name "
                "it: student.tokenizer.mask_token, or mask_token in its tokenizer_config.json"
                if is_student
                else "; give another checkpoint"
            )
        )
    return info


def _require_own_tokenizer(info: CheckpointInfo, tokenizer: TextTokenizer, named: str) -> None:
    """Raise an error if the tokenizer has tokens that the embedding lacks, except a new mask token."""
    num_known = tokenizer.vocab_size - int(tokenizer.is_mask_added)
    if num_known > info.vocab_size:
        raise ModelError(
            f"{named}: the tokenizer has ids up to {num_known - 1}, the embedding has {info.vocab_size} rows; "
            "put the checkpoint's own tokenizer next to it"
        )


def _add_row(model: PreTrainedModel, mask_id: int) -> None:
    """Write a token's rows in the embedding and the output head: the mean of the rows of all tokens before it.

    The mean is the embedding nearest to all tokens at once, a neutral "any of them", and its norm is one that the
    layers have seen. A padding row, or a random one, may have any norm. If padding rows are left, one of them is used.
    """
    if mask_id >= model.config.vocab_size:
        model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    for weight_VD in _weights_of_ids(model):
        weight_VD[mask_id] = _mean_row(weight_VD[:mask_id])


def _pad_rows(model: PreTrainedModel, num_ids: int, multiple: int) -> None:
    """Fill the embedding and the output head up to a multiple of rows, and say from where on they are padding.

    A row of padding is the mean of all tokens' rows, so that software which does not know it finds it no likelier than
    any token.
    """
    num_rows = model.config.vocab_size
    model.resize_token_embeddings(pad_to_multiple_of=multiple, mean_resizing=False)
    for weight_VD in _weights_of_ids(model):
        weight_VD[num_rows:] = _mean_row(weight_VD[:num_ids])
    setattr(model.config, PADDED, num_ids)


def _weights_of_ids(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the weights with a row for each id: two, or one when tied."""
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    return list({id(layer.weight): layer.weight for layer in layers}.values())


def _mean_row(weight_VD: torch.Tensor) -> torch.Tensor:
    return weight_VD.mean(dim=0, dtype=torch.float32).to(weight_VD.dtype)


def _change_tokenizer(model: PreTrainedModel, old: TextTokenizer, new: TextTokenizer) -> None:
    """Compute the rows of the embedding and the output head for another tokenizer, and adapt the configuration."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    made = {id(part.weight): rows_for_tokenizer(part.weight, old, new) for part in (embedding, head)}
    for part in (embedding, head):
        part.weight = torch.nn.Parameter(made[id(part.weight)])
    model.config.vocab_size = new.vocab_size
    model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = None, new.eos_id, new.pad_id
