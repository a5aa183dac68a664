"""Open a corpus: parse the spec, find the sources, select and normalise their rows, store them."""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from tide_cache.config.settings import OnBadRow
from tide_cache.corpus.languages import canonical_language, language_of
from tide_cache.corpus.rows import RawRow, RowFault, Source
from tide_cache.corpus.shapes import Unread, check_columns, conversation_of, used_fields
from tide_cache.corpus.sources import sources_of
from tide_cache.corpus.spec import Part, parse_spec
from tide_cache.corpus.store import CHAT_ROWS, Corpus, Row, RowKind, store_rows
from tide_cache.corpus.trajectories import FIELD, TrajectoriesOf
from tide_cache.errors import CorpusError, RunFileError, TideCacheError, fault_list
from tide_cache.progress import doing
from tide_cache.records import ChatRow, SampleId

_SHOWN_FAULTS = 5
_KEY = re.compile(r"(?<![\w.])corpus\.(spec|folder|columns|format|on_bad_row)\b")
_WAY_OUT = (
    'Fix the row, declare its columns in corpus.columns, for example {user = "question_text", assistant = "reply"}, '
    "or leave such rows out with --on-bad-row skip."
)


@dataclass(frozen=True)
class RowReading(Generic[Row]):
    """What the rows of a corpus mean.

    Attributes:
        kind: How they are stored.
        fields: Names of all columns that are read.
        row_of: Reads one decoded row, given its sample id and where it lies; raises RowFault where it cannot be used.
        language_of: Returns its language, for the lang selection.
        way_out: What can be done about a row that cannot be used.
        notes: Returns what was not read of the rows, once they are exhausted.
    """

    kind: RowKind[Row]
    fields: Container[str]
    row_of: Callable[[SampleId, str, object], Row]
    language_of: Callable[[object, Row], str | None]
    way_out: str
    notes: Callable[[], Sequence[str]] = tuple


def open_corpus(
    spec: str,
    *,
    folder: Path,
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "error",
    format: str = "chat",
    section: str = "corpus",
    trajectories: TrajectoriesOf | None = None,
) -> Corpus[ChatRow]:
    """Read a mix of files, saved datasets and hub datasets into conversations.

    Args:
        spec: Pieces joined by `+`, each with an optional selection: `a.jsonl+org/name[name:x,lang:python,train:100]`.
        folder: Where relative file names are looked up.
        columns: Mapping for unusual rows, tried before the known shapes: `{"user": ..., "assistant": ...}` with an
            optional `"system"`, or `{"messages": ...}`. Every column must occur in some row.
        on_bad_row: Whether a row that cannot be used stops the reading, or is left out and listed in `skipped`.
        format: Only `chat` holds conversations; for the others there is `open_preprocessed`.
        trajectories: Gives each row's trajectory, if they are wanted: `trajectory_field`, or of a file.
        section: Where the user set all this, for messages: the section of a run file, or an option, `--held-out`.

    Raises:
        RunFileError: The spec or the mapping cannot be understood, or the corpus holds no conversations.
        CorpusError: A source is missing, empty or broken, a row cannot be used, or no row of a piece is left.
    """
    with _named(section):
        shown = "" if section.startswith("-") else section
        return _open_chat(spec, folder, columns, on_bad_row, format, shown, trajectories)


@contextmanager
def _named(section: str) -> Iterator[None]:
    """Make messages name the keys that the user can set: `corpus.spec` is `data.corpus.spec` of a training run."""
    try:
        yield
    except TideCacheError as error:
        if section == "corpus":
            raise
        is_option = section.startswith("-")
        raise type(error)(_KEY.sub(lambda key: section if is_option else f"{section}.{key[1]}", str(error))) from None


def _open_chat(
    spec: str,
    folder: Path,
    columns: Mapping[str, str],
    on_bad_row: OnBadRow,
    format: str,
    section: str,
    trajectories: TrajectoriesOf | None,
) -> Corpus[ChatRow]:
    if format != "chat":
        raise RunFileError(
            f"corpus.format: found {format!r}; expected 'chat' here: only `tide-cache build-teacher-shards` and "
            "`tide-cache plan` read preprocessed sets. Build a cache from the set, and give the cache instead; "
            "the objective ce needs nothing else from it."
        )
    check_columns(columns)
    further = frozenset() if trajectories is None else frozenset({FIELD})
    unseen, unread = set(columns.values()), Unread(further)

    def row_of(sample_id: SampleId, origin: str, value: object) -> ChatRow:
        if unseen and isinstance(value, dict):
            unseen.difference_update(value)
        conversation = conversation_of(value, columns)
        unread.note(conversation)
        trajectory = "" if trajectories is None else trajectories(sample_id, value)
        return ChatRow(sample_id, conversation.messages, origin, conversation.tools, trajectory)

    corpus = read_rows(
        spec,
        folder,
        on_bad_row,
        RowReading(
            kind=CHAT_ROWS,
            fields=used_fields(columns) | further,
            row_of=row_of,
            language_of=lambda value, row: language_of(value, row.messages),
            way_out=_WAY_OUT if section else "Fix the row, or leave such rows out with --on-bad-row skip.",
            notes=unread.notes,
        ),
    )
    if unseen:
        raise CorpusError(
            f"corpus.columns names {', '.join(sorted(unseen))}, which no row of {spec!r} has; "
            "expected names of columns. Correct or remove them."
        )
    return corpus


def read_rows(spec: str, folder: Path, on_bad_row: OnBadRow, reading: RowReading[Row]) -> Corpus[Row]:
    """Read a mix into rows of one kind.

    Args:
        spec: As for `open_corpus`.
        folder: As for `open_corpus`.
        on_bad_row: As for `open_corpus`.
        reading: What the rows mean.

    Raises:
        RunFileError: The spec cannot be understood.
        CorpusError: As for `open_corpus`.
    """
    parts = parse_spec(spec, folder)
    selector = _Selector(reading, on_bad_row == "skip")
    notes: list[str] = []
    found = _all_sources(parts, folder, reading.fields, notes)

    with doing(f"Reading corpus {spec}", unit="rows") as phase:

        def rows() -> Iterator[Row]:
            for number, (part, sources) in enumerate(zip(parts, found, strict=True)):
                for row in selector.select(number, part, sources):
                    phase.advance()
                    yield row

        return store_rows(rows(), selector.skipped, reading.kind, lambda: [*notes, *reading.notes()])


def _all_sources(
    parts: Sequence[Part], folder: Path, wanted: Container[str], notes: list[str]
) -> list[tuple[Source, ...]]:
    """Find the sources of all parts, so that every missing file is reported at once."""
    found, faults = [], []
    for part in parts:
        try:
            found.append(sources_of(part, folder, wanted, notes))
        except CorpusError as error:
            faults.append(str(error))
    if faults:
        raise CorpusError(faults[0] if len(faults) == 1 else fault_list("The corpus cannot be read:", faults))
    return found


@dataclass
class _Selector(Generic[Row]):
    """Selects and normalises rows, and counts what it met."""

    reading: RowReading[Row]
    skips: bool
    skipped: list[str] = field(default_factory=list)

    def select(self, number: int, part: Part, sources: Sequence[Source]) -> Iterator[Row]:
        """Yield the rows of one part, of its language and up to its limit."""
        kept, skipped_before, languages = 0, len(self.skipped), Counter[str]()
        wanted = None if part.language is None else canonical_language(part.language)
        for source in sources:
            for raw in _nonempty(source):
                row = self._row(number, source, raw)
                if row is None:
                    continue
                if wanted is not None:
                    language = self.reading.language_of(raw.value, row)
                    languages[language or "not told"] += 1
                    if language != wanted:
                        continue
                yield row
                kept += 1
                if kept == part.limit:
                    return
        if not kept:
            raise CorpusError(_nothing_left(part, languages, self.skipped[skipped_before:]))

    def _row(self, number: int, source: Source, raw: RawRow) -> Row | None:
        sample_id = SampleId(f"{number}/{source.name}#{raw.number}")
        try:
            return self.reading.row_of(sample_id, raw.place_in(source.name), raw.value)
        except RowFault as fault:
            message = f"{raw.place_in(source.label)}: {fault}"
            if not self.skips:
                raise CorpusError(f"{message}\n{self.reading.way_out}") from None
            self.skipped.append(message)
            return None


def _nonempty(source: Source) -> Iterator[RawRow]:
    row = None
    for row in source.rows():
        yield row
    if row is None:
        raise CorpusError(f"{source.label}: is empty; expected at least one row. Fill it, or take it out of the spec.")


def _nothing_left(part: Part, languages: Counter[str], skipped: Sequence[str]) -> str:
    """Return why a part yielded no row."""
    lines = [f"{part.name}: no row is left; expected at least one."]
    if languages:
        counts = ", ".join(f"{language} ({count})" for language, count in languages.most_common(_SHOWN_FAULTS))
        lines.append(f"None is of lang:{part.language}; languages found: {counts}. Change or drop the lang selection.")
    if skipped:
        lines.append(f"{len(skipped)} bad rows were skipped:")
        lines += [f"  - {message}" for message in skipped[:_SHOWN_FAULTS]]
        lines.append("Fix them, or declare their columns in corpus.columns.")
    return "\n".join(lines)
