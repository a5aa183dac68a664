"""Measuring a model: held-out NLL over diffusion time, and agreement with the teacher of a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tide_cache.config.settings import Context, OnBadRow, Precision
from tide_cache.corpus import open_corpus
from tide_cache.errors import CacheMismatchError, differing, fault_list
from tide_cache.evaluation.agreement import AgreementReport, teacher_agreement
from tide_cache.evaluation.nll import TIMES, NllReport, held_out_nll
from tide_cache.evaluation.trained import TrainedModel, open_trained
from tide_cache.loading.cache import CacheSource, cache_layout
from tide_cache.locations import CachePath, cache_path
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.pairing.checking import LengthLimit, remarks_of, require_samples, require_usable
from tide_cache.records import SamplePair

CACHE_SAMPLES = 1000
"""Samples of a cache that agreement uses by default; their views are held in memory."""

OnMeasured = Callable[[str, int, int], None]
"""Called with what is measured, how many views are done and how many there are."""


@dataclass(frozen=True)
class HeldOutSamples:
    """Held-out text in a model's tokens.

    Attributes:
        pairs: The samples; the teacher's side is empty.
        remarks: What was left out or cut, and why.
    """

    pairs: Sequence[SamplePair]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """What a model knows of held-out text; `dataclasses.asdict` makes it JSON-ready.

    Attributes:
        nll: NLL in nats and accuracy, at each diffusion time and as means over all of them.
        agreement: Agreement with the teacher of a cache; None without a cache.
        remarks: What was left out of the text, and why; empty if samples were given.
    """

    nll: NllReport
    agreement: AgreementReport | None
    remarks: tuple[str, ...]


def measure(
    model: str | Path | TrainedModel,
    dataset: str | Path | Sequence[SamplePair],
    *,
    cache: str | Path | None = None,
    block_size: int | None = None,
    max_length: int = 512,
    limit: int | None = None,
    times: Sequence[float] = TIMES,
    seed: int = 0,
    context: Context = "block",
    on_bad_row: OnBadRow = "error",
    dtype: Precision = "float32",
    device: str = "auto",
    by_row: bool = False,
    progress: OnMeasured | None = None,
) -> Measurement:
    """Measure a checkpoint on held-out text: the figures of `tide-cache eval`.

    Masks depend only on `seed`, the sample and the index in `times`, so that models with the same tokenizer are asked
    the same questions. Everything is checked before weights are loaded.

    Args:
        model: Folder or hub name of a checkpoint, or an opened model.
        dataset: Held-out corpus, as `--dataset`; relative files are looked up in the current folder. Or samples in the
            model's tokens.
        cache: Also compare with the teacher, on the views of this cache; folder or URL.
        block_size: Tokens per diffusion block of a checkpoint; by default what it was trained with, else 32.
        max_length: Longest sample of the corpus, in tokens.
        limit: Most samples to use; by default all of the corpus, and 1,000 of the cache.
        times: Grid of t in (0, 1]; each supervised token is masked with probability t.
        seed: Mask seed.
        context: `block`: [x_t, x_0] under the block mask. `full`: x_t alone, bidirectional.
        on_bad_row: Whether a row that cannot be used is an error, or is left out and named in `remarks`.
        dtype: Of the weights of a checkpoint.
        device: Where they go: `auto`, `cpu`, `cuda` or `cuda:N`.
        by_row: Also keep the sums of every sample, for intervals over samples.
        progress: Called after each forward.

    Returns:
        NLL in nats per masked token, accuracy as a share, and `nats_per_byte` to compare tokenizers with.

    Raises:
        RunFileError: An impossible option, or samples above the model's limit.
        ModelError: There is no usable checkpoint, or an output is not finite.
        CorpusError: The corpus is missing or has bad rows.
        PairingError: No row became a sample, or a row cannot be rendered.
        CacheMismatchError: The cache is for another tokenizer, or lacks what is compared.
    """
    if not isinstance(model, TrainedModel):
        model = open_trained(str(model), block_size, dtype=dtype, device=device)
    root = None if cache is None else cache_path(str(cache))
    manifest = None if root is None else require_fitting_cache(root, model.tokenizer)
    remarks: tuple[str, ...] = ()
    if isinstance(dataset, str | Path):
        held_out = held_out_samples(str(dataset), model, max_length, limit=limit, on_bad_row=on_bad_row)
        dataset, remarks = held_out.pairs, held_out.remarks
    num_bytes = text_bytes(model.tokenizer, dataset)
    nll = held_out_nll(
        model.backbone,
        dataset,
        mask_id=model.tokenizer.mask_id,
        pad_id=model.tokenizer.pad_id,
        block_size=model.block_size,
        times=times,
        seed=seed,
        context=context,
        num_bytes=num_bytes if any(num_bytes) else None,
        by_row=by_row,
        progress=_named(progress, "held-out NLL"),
    )
    agreement = None
    if root is not None and manifest is not None:
        agreement = _agreement(model, root, manifest, limit, _named(progress, "agreement"))
    return Measurement(nll, agreement, remarks)


def held_out_samples(
    dataset: str,
    model: TrainedModel,
    max_length: int,
    *,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
    section: str = "dataset",
    length_key: str = "max_length",
) -> HeldOutSamples:
    """Read held-out text and make samples of it.

    Args:
        dataset: As for `open_corpus`.
        model: The model whose tokenizer is used.
        max_length: Longest sample, in tokens.
        limit: Most rows to read; None for all.
        on_bad_row: Whether a row that cannot be used is an error or is left out.
        section: Where the user set the corpus, for messages.
        length_key: Where the user set the length.

    Raises:
        RunFileError: The model's limit is below `max_length`.
        CorpusError: The corpus is missing or has bad rows.
        PairingError: No row became a sample, or a row cannot be rendered.
    """
    model.require_fits(max_length)
    corpus = open_corpus(dataset, folder=Path.cwd(), on_bad_row=on_bad_row, section=section)
    rows = list(corpus.rows(0, limit or len(corpus)))
    sizes = {"max_length": max_length, "block_size": model.block_size}
    paired = encode_student(rows, model.tokenizer, **sizes, fill_last_block=True)
    require_usable(dataset, paired.faults, on_bad_row, "")
    require_samples(f"{dataset}: no row of the corpus became a sample:", paired.report, f"Raise {length_key}.")
    limits = (LengthLimit(length_key, max_length),)
    return HeldOutSamples(paired.pairs, remarks_of(paired, limits, corpus.notes, corpus.skipped))


def text_bytes(tokenizer: TextTokenizer, pairs: Sequence[SamplePair]) -> list[int]:
    """Count the bytes that supervised tokens of each sample spell, without special tokens.

    Args:
        tokenizer: The model's.
        pairs: Samples in its tokens.
    """
    num_bytes = []
    for pair in pairs:
        ids_N = pair.student_ids_L[pair.is_supervised_L]
        num_bytes.append(len(tokenizer.token_bytes.join(ids_N[~tokenizer.is_special_V[ids_N]].tolist())))
    return num_bytes


def require_fitting_cache(cache: CachePath, tokenizer: TextTokenizer) -> Manifest:
    """Read a cache's manifest, and check that its student tokenizer is the model's.

    Raises:
        CacheMismatchError: Lists what differs.
    """
    manifest = Manifest.load(cache)
    if faults := [
        f"student tokenizer, {name}: cache has {found}, the model's is {expected}"
        for name, found, expected in differing(manifest.identity.student_tokenizer, tokenizer.fingerprint())
    ]:
        raise CacheMismatchError(
            fault_list(
                f"{cache} was not built for this model:",
                faults,
                "Give a cache that was built with the model's tokenizer, or leave --cache out.",
            )
        )
    return manifest


def _agreement(
    model: TrainedModel,
    cache: CachePath,
    manifest: Manifest,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
) -> AgreementReport:
    source = CacheSource(cache, manifest)
    samples = range(min(source.groups.num_samples, limit or CACHE_SAMPLES))
    records = [r for view in range(manifest.identity.views.num_views) for r in source.records(samples, view)]
    layout = cache_layout(manifest, model.tokenizer.mask_id, model.tokenizer.pad_id, model.block_size)
    return teacher_agreement(model.backbone, records, layout, progress=progress)


def _named(progress: OnMeasured | None, title: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(title, done, total)
