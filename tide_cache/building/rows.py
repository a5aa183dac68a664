"""The corpus of a build: opened with the pairer for its rows, all of them paired, and what became of them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from tide_cache.building.paired_corpus import PairedCorpus, pair_corpus
from tide_cache.building.trajectories import trajectories_wanted
from tide_cache.config.build import BuildRun
from tide_cache.corpus import Corpus, open_corpus, open_preprocessed
from tide_cache.corpus.unread import KnownCorpus, UnreadCorpus
from tide_cache.errors import CorpusError
from tide_cache.manifest import ShardPlan
from tide_cache.pairing import Lengths, Pairer, PairingReport, PreprocessedPairer, SamplePairer, TextTokenizer
from tide_cache.pairing.checking import LengthLimit, remarks, require_samples, require_usable

ROWS_CHECKED_FIRST = 64


def rows_and_pairer(
    run: BuildRun, teacher: TextTokenizer, student: TextTokenizer, known: KnownCorpus | None
) -> tuple[Corpus[Any], Pairer]:
    """Open the corpus, unless it is known, and choose the pairer for its rows."""
    lengths = {
        "teacher_max_length": run.teacher.max_length,
        "student_max_length": run.student.max_length,
        "student_block_size": run.student.block_size,
    }
    fills = run.student.fill_last_block
    if run.corpus.format == "chat":
        pairer = SamplePairer(teacher, student, **lengths, fill_last_block=fills, aligner=run.pairing.aligner)
        read = partial(open_corpus, **dict(run.corpus), trajectories=trajectories_wanted(run))
        return (read() if known is None else UnreadCorpus(known, read)), pairer
    read_preprocessed = partial(
        open_preprocessed,
        **dict(run.corpus),
        student_vocab_size=student.vocab_size,
        teacher_vocab_size=teacher.vocab_size,
    )
    preprocessed = PreprocessedPairer(teacher, student, **lengths, fill_last_block=fills)
    if known is not None:
        return UnreadCorpus(known, read_preprocessed), preprocessed
    corpus = read_preprocessed()
    report = preprocessed.pair_many(list(corpus.rows(0, ROWS_CHECKED_FIRST))).report
    if report.spans_dropped and not report.chunks:
        raise CorpusError(
            f"{run.corpus.spec}: in its first {min(len(corpus), ROWS_CHECKED_FIRST)} rows none of "
            f"{report.spans_dropped} spans has the same bytes on both sides; expected tokens of {teacher.name} for the "
            f"teacher and of {student.name} for the student.\nGive the tokenizers that the set was made with as "
            "teacher.tokenizer and student.tokenizer."
        )
    return corpus, preprocessed


def pair_all(run: BuildRun, corpus: Corpus[Any], pairer: Pairer, plan: ShardPlan) -> PairedCorpus:
    """Pair every row, and refuse those that cannot be used unless they may be left out."""
    paired = pair_corpus(corpus, pairer, plan)
    require_usable_rows(run, paired.report, paired.faults, paired.num_faults)
    return paired


def require_usable_rows(
    run: BuildRun, report: PairingReport, faults: Sequence[str], num_faults: int | None = None
) -> None:
    """Refuse rows that cannot be used, unless they may be left out; and rows of which nothing is left.

    Args:
        run: The run file.
        report: Counts of rows of its corpus.
        faults: Some or all bad rows among them.
        num_faults: How many there are; by default those given.

    Raises:
        PairingError: Lists the first rows, or the reasons.
    """
    require_usable(run.corpus.spec, faults, run.corpus.on_bad_row, "corpus.on_bad_row", num_faults)
    way_out = "Raise student.max_length and teacher.max_length, or fix the corpus. Nothing was computed."
    num_rows = report.samples + sum(report.dropped.values())
    require_samples(f"{run.corpus.spec}: none of {num_rows} rows became a sample:", report, way_out)


def build_remarks(
    run: BuildRun, corpus: Corpus[Any], report: PairingReport, lengths: Lengths, faults: Sequence[str]
) -> tuple[str, ...]:
    """Tell the user what became of the rows; arguments as for `remarks`."""
    limits = (
        LengthLimit("student.max_length", run.student.max_length),
        LengthLimit("teacher.max_length", run.teacher.max_length, "teacher"),
    )
    return remarks(report, lengths, limits, corpus.notes, corpus.skipped, faults)
