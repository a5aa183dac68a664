"""What cannot work in the run file of a build, given its checkpoint and tokenizers."""

from pathlib import Path

from tide_cache.building.engine_topk import topk_faults
from tide_cache.building.trajectories import trajectory_faults
from tide_cache.config.build import BuildRun
from tide_cache.families import FAMILIES
from tide_cache.modeling.backbone import CheckpointInfo, unsupported_loading
from tide_cache.pairing import TextTokenizer


def build_faults(
    run: BuildRun, checkpoint: CheckpointInfo, teacher: TextTokenizer, own_ids: int, shared: int
) -> list[str]:
    """List all that cannot work, each with its setting; nothing of the corpus or the weights is read.

    Args:
        run: The run file.
        checkpoint: The teacher's.
        teacher: Its tokenizer.
        own_ids: Number of its ids that the model must have.
        shared: Number of ids that both tokenizers share.
    """
    faults = _context_faults(run, checkpoint) + trajectory_faults(run)
    faults += checkpoint.fit_faults(own_ids, run.teacher.max_length, "teacher")
    if run.teacher.context != "causal":
        faults += checkpoint.mask_faults(teacher.mask_id, teacher.mask_token, "teacher.tokenizer")
    if run.teacher.context == "block":
        faults += checkpoint.block_faults(run.teacher.block_size, "teacher")
    if run.teacher.topk is not None:
        faults += topk_faults(run)
    else:
        faults += unsupported_loading(checkpoint, run.teacher.loading)
    return faults + _setting_faults(run, checkpoint, shared) + _untrained_faults(run, checkpoint)


def _context_faults(run: BuildRun, checkpoint: CheckpointInfo) -> list[str]:
    """List a causal context for a model that is none, and what has no meaning under it."""
    if run.teacher.context != "causal":
        return []
    faults, family = [], FAMILIES.get(checkpoint.model_type)
    if run.teacher.topk is None and family is not None and "causal" not in family.contexts:
        way_out = f"use teacher.context = {family.native!r}"
        if checkpoint.converted_from is not None:
            way_out = f"give the causal model that it was converted from ({checkpoint.converted_from})"
        faults.append(
            f"teacher.context: found 'causal', but {checkpoint.location} ({checkpoint.model_type}) is a masked "
            f"diffusion model, which sees both sides; {way_out}"
        )
    if run.signals.chunk_passes:
        faults.append(
            f"signals.chunk_passes: found {run.signals.chunk_passes} with teacher.context = 'causal': a causal teacher "
            "sees the true tokens before each one already; leave it out"
        )
    if "compdemo" in run.build.passes:
        faults.append(
            "build.passes: found 'compdemo' with teacher.context = 'causal': it shows parts of what is masked, and a "
            "causal teacher sees every true token before the one it predicts; leave compdemo out"
        )
    return faults


def _untrained_faults(run: BuildRun, checkpoint: CheckpointInfo) -> list[str]:
    if checkpoint.converted_from is None or run.teacher.allow_untrained or run.teacher.context == "causal":
        return []
    return [
        f"teacher.model: {checkpoint.location} was converted from {checkpoint.converted_from} and never trained to "
        "denoise, so it predicts nothing useful; train it first (tide-cache train --student), or say "
        "--allow-untrained (teacher.allow_untrained). Or take the causal model that it was made of, with "
        "teacher.context = 'causal'. If it was trained elsewhere, remove its tide_cache.json"
    ]


def _setting_faults(run: BuildRun, checkpoint: CheckpointInfo, shared: int) -> list[str]:
    faults = []
    if run.signals.ids_per_row > checkpoint.vocab_size:
        faults.append(f"signals.top_k: found {run.signals.top_k}, the teacher has {checkpoint.vocab_size} ids")
    if run.pairing.shared_vocab_size is not None and run.pairing.shared_vocab_size > shared:
        faults.append(
            f"pairing.shared_vocab_size: found {run.pairing.shared_vocab_size}, but the tokenizers differ "
            f"at id {shared}; leave it out to have it found by comparison"
        )
    if run.corpus.format != "chat" and run.pairing.aligner != "bytes":
        faults.append(
            f"pairing.aligner: found {run.pairing.aligner!r}, but the spans of corpus.format = {run.corpus.format!r} "
            "are cut by their bytes; leave it out"
        )
    if isinstance(run.build.out, Path) and run.build.out.exists() and not run.build.out.is_dir():
        faults.append(f"build.out: {run.build.out} is a file; give an empty or new folder")
    return faults
