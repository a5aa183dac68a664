"""Everything about a run of `answers` that can be checked before the teacher's weights are loaded."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tide_cache.config.answers import AnswersRun
from tide_cache.config.settings import TeacherContext
from tide_cache.corpus import Corpus
from tide_cache.corpus.prompts import PromptRow, open_prompts
from tide_cache.corpus.spec import local_path, parse_spec
from tide_cache.decoding.options import SamplerOptions, decoding_faults
from tide_cache.errors import RunFileError, fault_list
from tide_cache.families import FAMILIES
from tide_cache.modeling.backbone import CheckpointInfo, fetch_weights, read_checkpoint, unsupported_loading
from tide_cache.modeling.checkpoint import read_provenance
from tide_cache.modeling.fingerprint import checkpoint_fingerprint
from tide_cache.pairing import TextTokenizer
from tide_cache.pairing.checking import require_usable
from tide_cache.pairing.dates import today
from tide_cache.pairing.rendered import RenderError
from tide_cache.progress import doing

ROWS_AT_ONCE = 512
FORMAT_VERSION = 1
_WITHOUT_MEANING = {"steps_per_block": None, "threshold": None, "remasking": "low_confidence", "cfg_scale": 0.0}
"""Settings that a causal model does not use, and their defaults."""


@dataclass(frozen=True)
class Prompt:
    """A row with the tokens that the teacher continues."""

    row: PromptRow
    ids: list[int]


@dataclass(frozen=True, eq=False)
class PreparedAnswers:
    """A checked run: all that a worker needs besides the teacher's weights.

    Attributes:
        run: The run file, with what the checkpoint decided.
        checkpoint: The teacher's checkpoint.
        tokenizer: The teacher's tokenizer.
        corpus: The prompts.
        identity: What determines the answers, as plain values by name; hashes of the weights are None at first.
        skipped: One message for each row that is left out.
        notes: The parts of rows that were not kept.
    """

    run: AnswersRun
    checkpoint: CheckpointInfo
    tokenizer: TextTokenizer
    corpus: Corpus[PromptRow]
    identity: dict[str, Any]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_shards(self) -> int:
        """Number of parts of the file."""
        return -(-len(self.corpus) // self.run.answers.samples_per_shard)

    @property
    def options(self) -> SamplerOptions:
        """How a diffusion teacher writes."""
        return _options(self.run)

    def rows_of(self, shard: int) -> range:
        """Return the rows of a part."""
        size = self.run.answers.samples_per_shard
        return range(shard * size, min((shard + 1) * size, len(self.corpus)))

    def with_weights(self) -> "PreparedAnswers":
        """Fetch and hash the teacher's weights, and return the same with their hash in the identity."""
        fetch_weights(self.checkpoint)
        hashes = {f"teacher.{name}": value for name, value in checkpoint_fingerprint(self.checkpoint.folder).items()}
        return replace(self, identity={**self.identity, **hashes})

    def prompts(self, rows: range) -> list[Prompt | str]:
        """Return prompts of some rows; a fault in place of a row that cannot be answered."""
        found = list(self.corpus.rows(rows.start, rows.stop))
        limit = int(self.checkpoint.config.max_position_embeddings)
        return _prompts(found, self.tokenizer, self.run, limit)


def prepare_answers(run: AnswersRun, day: datetime.date | None = None) -> PreparedAnswers:
    """Check a run, and read and tokenise its prompts; the teacher's weights are not read.

    Args:
        run: The run file.
        day: The date for a template that writes it, if the run file states none; by default today.

    Raises:
        RunFileError: The run file has faults; lists all.
        PairingError: Prompts cannot be rendered, are empty, or too long.
        TideCacheError: Corpus, tokenizer or checkpoint cannot be read.
    """
    checkpoint = read_checkpoint(run.teacher.model, run.teacher.revision)
    run = _resolved(run, checkpoint)
    tokenizer = TextTokenizer.load(**dict(run.teacher.tokenizer_in(checkpoint.folder)), mask_id=checkpoint.mask_id)
    if faults := _faults(run, checkpoint, tokenizer):
        raise RunFileError(fault_list("nothing can be answered:", faults, "Nothing was loaded or written."))
    shown_day = run.answers.date or day or today()
    tokenizer.show_day(shown_day)
    corpus = open_prompts(**dict(run.corpus))
    limit = int(checkpoint.config.max_position_embeddings)
    bad: list[str] = []
    with doing("Tokenising prompts", len(corpus), "rows") as phase:
        for start in range(0, len(corpus), ROWS_AT_ONCE):
            rows = list(corpus.rows(start, start + ROWS_AT_ONCE))
            bad += [found for found in _prompts(rows, tokenizer, run, limit) if isinstance(found, str)]
            phase.advance(len(rows))
    require_usable(run.corpus.spec, bad, run.corpus.on_bad_row, "corpus.on_bad_row")
    if len(bad) == len(corpus):
        raise RunFileError(fault_list(f"{run.corpus.spec}: no prompt is left:", bad[:5], "Nothing was loaded."))
    identity = _identity(run, checkpoint, tokenizer, corpus, shown_day)
    return PreparedAnswers(run, checkpoint, tokenizer, corpus, identity, (*corpus.skipped, *bad), corpus.notes)


def _resolved(run: AnswersRun, checkpoint: CheckpointInfo) -> AnswersRun:
    """Return the run with what the checkpoint decides: context, block size, and the longest sequence."""
    stated = run.teacher.model_fields_set
    changes: dict[str, Any] = {"max_length": int(checkpoint.config.max_position_embeddings)}
    if "context" not in stated:
        changes["context"] = FAMILIES[checkpoint.model_type].native
    of_training = read_provenance(checkpoint.folder).get("block_size", checkpoint.block_size)
    if "block_size" not in stated and isinstance(of_training, int):
        changes["block_size"] = of_training
    return run.model_copy(update={"teacher": run.teacher.model_copy(update=changes)})


def _options(run: AnswersRun) -> SamplerOptions:
    decoding, block_size = run.decoding, run.teacher.block_size
    context: TeacherContext = run.teacher.context
    return {
        "block_size": block_size,
        "max_new_tokens": decoding.max_new_tokens,
        "steps_per_block": decoding.steps_per_block or block_size,
        "threshold": decoding.threshold,
        "remasking": decoding.remasking,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "cfg_scale": decoding.cfg_scale,
        "context": "full" if context == "full" else "block",
        "seed": decoding.seed,
        "batch_size": run.answers.batch_size,
    }


def _faults(run: AnswersRun, checkpoint: CheckpointInfo, tokenizer: TextTokenizer) -> list[str]:
    context, family = run.teacher.context, FAMILIES[checkpoint.model_type]
    is_mask_alone = context == "causal" and tokenizer.is_mask_added
    faults = checkpoint.fit_faults(tokenizer.vocab_size - is_mask_alone, 1, "teacher")
    faults += decoding_faults(_options(run))
    faults += unsupported_loading(checkpoint, run.teacher.loading)
    if context not in family.contexts:
        faults.append(
            f"teacher.context: found {context!r}; {checkpoint.location} ({checkpoint.model_type}) can be shown "
            f"{' or '.join(family.contexts)}; leave it out for {family.native!r}"
        )
    if context == "causal":
        faults += [
            f"decoding.{name}: found {value!r}; a causal teacher writes one token after another; leave it out"
            for name, default in _WITHOUT_MEANING.items()
            if (value := getattr(run.decoding, name)) != default
        ]
    else:
        faults += checkpoint.mask_faults(tokenizer.mask_id, tokenizer.mask_token, "teacher.tokenizer")
        if checkpoint.converted_from is not None and not run.teacher.allow_untrained:
            faults.append(
                f"teacher.model: {checkpoint.location} was converted from {checkpoint.converted_from} and never "
                "trained to denoise, so its answers mean nothing; train it first, or say --allow-untrained"
            )
    if context == "block":
        faults += checkpoint.block_faults(run.teacher.block_size, "teacher")
    if run.answers.date is not None and not tokenizer.writes_date:
        faults.append(f"answers.date: found {run.answers.date}, but the chat template writes no date; leave it out")
    return faults + _out_faults(run)


def _out_faults(run: AnswersRun) -> list[str]:
    out, faults = run.answers.out, []
    if out.suffix != ".jsonl":
        faults.append(f"answers.out: found {out.name}; expected a name that ends in .jsonl")
    if out.is_dir():
        faults.append(f"answers.out: {out} is a folder; expected the name of a file")
    read = [local_path(part.name, run.corpus.folder) for part in parse_spec(run.corpus.spec, run.corpus.folder)]
    if any(path == out or (path in out.parents and path.is_dir()) for path in read):
        faults.append(f"answers.out: {out} lies in what corpus.spec reads; write elsewhere")
    return faults


def _prompts(rows: Sequence[PromptRow], tokenizer: TextTokenizer, run: AnswersRun, limit: int) -> list[Prompt | str]:
    rendered = tokenizer.try_render(rows, add_generation_prompt=True)
    texts = [text.text for text in rendered if not isinstance(text, RenderError)]
    encoded: Iterator[Any] = iter(tokenizer.encode_many(texts))
    found: list[Prompt | str] = []
    for row, text in zip(rows, rendered, strict=True):
        if isinstance(text, RenderError):
            found.append(f"{row.origin}: {text}")
            continue
        ids: list[int] = next(encoded).ids_L.tolist()
        fault = _length_fault(len(ids), run, limit)
        found.append(f"{row.origin}: {fault}" if fault else Prompt(row, ids))
    return found


def _length_fault(num_tokens: int, run: AnswersRun, limit: int) -> str:
    if not num_tokens:
        return "its prompt has no token; expected a chat template that writes something before an answer"
    needed, block_size = num_tokens + run.decoding.max_new_tokens, run.teacher.block_size
    if run.teacher.context != "causal":
        needed = -(-needed // block_size) * block_size
    if needed <= limit:
        return ""
    return (
        f"its prompt has {num_tokens} tokens; with decoding.max_new_tokens = {run.decoding.max_new_tokens} that needs "
        f"{needed} positions, the model's limit is {limit}; shorten the prompt, or lower max_new_tokens"
    )


def _identity(
    run: AnswersRun,
    checkpoint: CheckpointInfo,
    tokenizer: TextTokenizer,
    corpus: Corpus[PromptRow],
    day: datetime.date,
) -> dict[str, Any]:
    """Return what determines the answers, as a flat dict; batching and workers are not part of it."""
    teacher = run.teacher.model_dump(mode="json", include={"context", "block_size", "dtype", "quantisation"})
    if run.teacher.context != "block" and run.teacher.context != "full":
        del teacher["block_size"]
    decoding = run.decoding.model_dump(mode="json")
    of_teacher = {"model_type": checkpoint.model_type, "revision": checkpoint.commit or run.teacher.revision}
    return {
        "format_version": FORMAT_VERSION,
        "corpus_hash": corpus.content_hash,
        "num_rows": len(corpus),
        "teacher.weights_sha256": None,
        "teacher.config_sha256": None,
        **{f"teacher.{name}": value for name, value in {**of_teacher, **teacher}.items()},
        **{f"tokenizer.{name}": value for name, value in tokenizer.fingerprint().items()},
        **{f"tokenizer.{name}": value for name, value in sorted(tokenizer.special_tokens.items())},
        **{f"decoding.{name}": value for name, value in decoding.items()},
        "answers.unfinished": run.answers.unfinished,
        "answers.trajectory": run.answers.trajectory,
        "answers.date": day.isoformat() if tokenizer.writes_date else None,
        "answers.samples_per_shard": run.answers.samples_per_shard,
    }
