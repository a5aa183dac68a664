"""Open a corpus: parse the spec, find the sources, select and normalise their rows, store them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tide_cache.corpus.languages import canonical_language, language_of
from tide_cache.corpus.rows import RawRow, RowFault, Source
from tide_cache.corpus.shapes import check_columns, messages_of, used_fields
from tide_cache.corpus.sources import sources_of
from tide_cache.corpus.spec import Part, parse_spec
from tide_cache.corpus.store import Corpus, store_rows
from tide_cache.errors import CorpusError, fault_list
from tide_cache.records import ChatRow, SampleId

_SHOWN_FAULTS = 5


def open_corpus(
    spec: str,
    *,
    folder: Path,
    columns: Mapping[str, str] = {},
    on_bad_row: Literal["error", "skip"] = "error",
) -> Corpus:
    """Read a mix of files, saved datasets and hub datasets into rows.

    Args:
        spec: Pieces joined by `+`, each with an optional selection: `a.jsonl+org/name[name:x,lang:python,train:100]`.
        folder: Where relative file names are looked up.
        columns: Mapping for unusual rows, tried before the known shapes: `{"user": ..., "assistant": ...}` with an
            optional `"system"`, or `{"messages": ...}`. Every column must occur in some row.
        on_bad_row: Whether a row that cannot be used stops the reading, or is left out and listed in `skipped`.

    Raises:
        RunFileError: The spec or the mapping cannot be understood.
        CorpusError: A source is missing, empty or broken, a row cannot be used, or no row of a piece is left.
    """
    check_columns(columns)
    parts = parse_spec(spec, folder)
    selector = _Selector(columns, on_bad_row == "skip", unseen=set(columns.values()))
    found = _all_sources(parts, folder, used_fields(columns))

    def rows() -> Iterator[ChatRow]:
        for number, (part, sources) in enumerate(zip(parts, found, strict=True)):
            yield from selector.select(number, part, sources)
        selector.require_columns_seen(spec)

    return store_rows(rows(), selector.skipped)


def _all_sources(parts: Sequence[Part], folder: Path, wanted: frozenset[str]) -> list[tuple[Source, ...]]:
    """Find the sources of all parts, so that every missing file is reported at once."""
    found, faults = [], []
    for part in parts:
        try:
            found.append(sources_of(part, folder, wanted))
        except CorpusError as error:
            faults.append(str(error))
    if faults:
        raise CorpusError(faults[0] if len(faults) == 1 else fault_list("The corpus cannot be read:", faults))
    return found


@dataclass
class _Selector:
    """Selects and normalises rows, and keeps account of what it met."""

    columns: Mapping[str, str]
    skips: bool
    unseen: set[str]
    skipped: list[str] = field(default_factory=list)

    def select(self, number: int, part: Part, sources: Sequence[Source]) -> Iterator[ChatRow]:
        """Yield the rows of one part, of its language and up to its limit."""
        kept, skipped_before, languages = 0, len(self.skipped), Counter[str]()
        wanted = None if part.language is None else canonical_language(part.language)
        for source in sources:
            for raw in _nonempty(source):
                row = self._row(number, source, raw)
                if row is None:
                    continue
                if wanted is not None:
                    language = language_of(raw.value, row.messages)
                    languages[language or "not told"] += 1
                    if language != wanted:
                        continue
                yield row
                kept += 1
                if kept == part.limit:
                    return
        if not kept:
            raise CorpusError(_nothing_left(part, languages, self.skipped[skipped_before:]))

    def require_columns_seen(self, spec: str) -> None:
        """Refuse a declared column that no row had: it is misspelt, or of another corpus."""
        if self.unseen:
            raise CorpusError(
                f"corpus.columns names {', '.join(sorted(self.unseen))}, which no row of {spec!r} has; "
                "expected names of columns. Correct or remove them."
            )

    def _row(self, number: int, source: Source, raw: RawRow) -> ChatRow | None:
        if self.unseen and isinstance(raw.value, dict):
            self.unseen.difference_update(raw.value)
        try:
            messages = messages_of(raw.value, self.columns)
        except RowFault as fault:
            message = f"{raw.place_in(source.label)}: {fault}"
            if not self.skips:
                raise CorpusError(
                    f"{message}\nMend the row, declare its columns in corpus.columns, for example "
                    '{user = "question_text", assistant = "reply"}, or leave such rows out with --on-bad-row skip.'
                ) from None
            self.skipped.append(message)
            return None
        sample_id = SampleId(f"{number}/{source.name}#{raw.number}")
        return ChatRow(sample_id, messages, raw.place_in(source.name))


def _nonempty(source: Source) -> Iterator[RawRow]:
    row = None
    for row in source.rows():
        yield row
    if row is None:
        raise CorpusError(f"{source.label}: is empty; expected at least one row. Fill it, or take it out of the spec.")


def _nothing_left(part: Part, languages: Counter[str], skipped: Sequence[str]) -> str:
    """Say why a part gave no row."""
    lines = [f"{part.name}: no row is left; expected at least one."]
    if languages:
        counts = ", ".join(f"{language} ({count})" for language, count in languages.most_common(_SHOWN_FAULTS))
        lines.append(f"None is of lang:{part.language}; languages found: {counts}. Change or drop the lang selection.")
    if skipped:
        lines.append(f"{len(skipped)} bad rows were skipped:")
        lines += [f"  - {message}" for message in skipped[:_SHOWN_FAULTS]]
        lines.append("Mend them, or declare their columns in corpus.columns.")
    return "\n".join(lines)
