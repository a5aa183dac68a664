"""A build from what an engine wrote: its teacher has a tokenizer and a name, and need not be a model that loads."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from tide_cache.config.build import BuildRun, EngineTopKConfig
from tide_cache.config.sections import SignalsConfig
from tide_cache.errors import RunFileError
from tide_cache.hub import open_repository
from tide_cache.manifest.identity import Scalar
from tide_cache.modeling.backbone import CheckpointInfo
from tide_cache.pairing import TextTokenizer
from tide_cache.places import read_config
from tide_cache.teacher.engine_topk import EngineTopK
from tide_cache.unreadable import is_file

NO_LIMIT = 1 << 30
"""Length of the longest text where nobody states one."""


def described_teacher(run: BuildRun) -> CheckpointInfo:
    """Read what a build needs to know of a teacher that is not loaded: its tokenizer's place and its vocabulary.

    Args:
        run: The run file.

    Raises:
        ModelError: There is no such folder or repository, or its config.json cannot be read.
    """
    repository = open_repository(run.teacher.model, run.teacher.revision)
    path = repository.folder / "config.json"
    raw = read_config(run.teacher.model, path) if is_file(path) else {}
    of_text = raw.get("text_config")
    stated = {**(of_text if isinstance(of_text, Mapping) else {}), **raw}
    config = SimpleNamespace(
        vocab_size=_number(stated.get("vocab_size")),
        max_position_embeddings=_number(stated.get("max_position_embeddings")) or NO_LIMIT,
    )
    return CheckpointInfo(run.teacher.model, str(raw.get("model_type", "unknown")), config, repository=repository)


def with_vocabulary(checkpoint: CheckpointInfo, num_tokens: int) -> CheckpointInfo:
    """Take the tokenizer's vocabulary where no config.json states the model's.

    Args:
        checkpoint: From `described_teacher`.
        num_tokens: Ids of the tokenizer.
    """
    if checkpoint.vocab_size:
        return checkpoint
    return replace(checkpoint, config=SimpleNamespace(**vars(checkpoint.config) | {"vocab_size": num_tokens}))


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def topk_faults(run: BuildRun) -> list[str]:
    """List what cannot be had from top-k under the true text.

    Args:
        run: The run file, with `teacher.topk`.
    """
    faults, signals = [], run.signals
    if signals.temperatures != (1.0,):
        found = ", ".join(f"{temperature:g}" for temperature in signals.temperatures)
        faults.append(
            f"signals.temperatures: found {found}, but what top-k leaves out is known at T = 1 alone; use [1.0], and "
            "temperature = 1 in objectives"
        )
    if signals.tail_samples:
        faults.append(
            f"signals.tail_samples: found {signals.tail_samples}, but top-k holds nothing to draw from; use 0"
        )
    if signals.has_projected:
        faults.append(
            "signals.kinds: found 'projected', which is a sum over the whole vocabulary; use 'chunks' across "
            "tokenizers, or 'topk'"
        )
    return faults


def kept_signals(signals: SignalsConfig, topk: EngineTopK) -> SignalsConfig:
    """Return what can be kept: no more ids than are listed.

    Args:
        signals: Of the run file.
        topk: What the engine wrote.
    """
    return replace(signals, top_k=min(signals.top_k, topk.depth)) if topk.depth else signals


def open_topk(run: BuildRun, path: Path, tokenizer: TextTokenizer, vocab_size: int) -> EngineTopK:
    """Read what an engine wrote.

    Args:
        run: The run file.
        path: Where it lies.
        tokenizer: The teacher's.
        vocab_size: Ids of the teacher are below it.

    Raises:
        RunFileError: It lists no likeliest ids, and the run wants them.
        EngineFileError: It cannot be used.
    """
    topk = EngineTopK(path, tokenizer, vocab_size)
    if not topk.depth and run.signals.ids_per_row:
        raise RunFileError(
            f"signals.kinds: found {', '.join(run.signals.kinds)}, but {path} lists the true token alone; use "
            "['truth'], or ask the engine for more (prompt_logprobs = 64). Nothing was written."
        )
    return topk


def topk_remarks(signals: SignalsConfig, topk: EngineTopK) -> tuple[str, ...]:
    """Tell the user where fewer ids are kept than the run file allows.

    Args:
        signals: Of the run file.
        topk: What the engine wrote.
    """
    if not signals.ids_per_row or signals.top_k <= topk.depth:
        return ()
    return (
        f"{topk.path} lists {topk.depth} ids at a position; signals.top_k allows {signals.top_k}, and "
        f"{topk.depth} are kept.",
    )


def teacher_identity(run: BuildRun, checkpoint: CheckpointInfo, topk: EngineTopK | None) -> dict[str, Scalar]:
    """Return what the identity says of a teacher that an engine asked.

    Args:
        run: The run file.
        checkpoint: From `described_teacher`.
        topk: What the engine wrote; None before it is read.
    """
    section: EngineTopKConfig | None = run.teacher.topk
    assert section is not None, "a teacher without top-k"
    own_name = Path(run.teacher.model).name if Path(run.teacher.model).is_dir() else run.teacher.model
    return {
        "model_type": checkpoint.model_type,
        "name": section.name or own_name,
        "revision": run.teacher.revision or checkpoint.commit,
        "engine": section.engine or (None if topk is None else topk.format),
        "topk_format": None if topk is None else topk.format,
        "topk_sha256": None if topk is None else topk.sha256,
        "context": run.teacher.context,
        "max_length": run.teacher.max_length,
    }
