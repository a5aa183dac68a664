"""JSON Schemas of the documents that people write and programs read; the committed copies must not drift."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from tide_cache.config.answers import AnswersRun
from tide_cache.config.base import Frozen
from tide_cache.config.build import BuildRun
from tide_cache.config.json_schema import RunFileSchema
from tide_cache.config.train import TrainRun
from tide_cache.disk import new_folder, write_whole
from tide_cache.manifest import CommitRecord, ManifestHead, PlanDocument, WholeManifest
from tide_cache.shards.schema import FORMAT_VERSION, PAIRS_SCHEMA, signals_schema
from tide_cache.signal_table import PARTS, SPLIT, TRUTH
from tide_cache.version import __version__

DIALECT = "https://json-schema.org/draft/2020-12/schema"

MODELS: dict[str, type[Frozen]] = {
    "build-run.json": BuildRun,
    "train-run.json": TrainRun,
    "answers-run.json": AnswersRun,
    "manifest.json": WholeManifest,
    "manifest-head.json": ManifestHead,
    "plan.json": PlanDocument,
    "commit-record.json": CommitRecord,
}
RUN_FILES = ("build-run.json", "train-run.json", "answers-run.json")
COLUMNS = "parquet-columns.json"
OPTIONAL_PARTS = (*(part.name for part in PARTS if part not in (TRUTH, SPLIT)), SPLIT.name)


def schema_id(name: str) -> str:
    """Return the name and version of a schema: the release for a run file, the format for a cache's document."""
    version = __version__ if name in RUN_FILES else f"format-{FORMAT_VERSION}"
    return f"urn:tide-cache:{version}:{name.removesuffix('.json')}"


def schema_texts() -> dict[str, str]:
    """Return the content of every schema file, by name."""
    documents: dict[str, Any] = {
        name: {"$schema": DIALECT, "$id": schema_id(name), **model.model_json_schema(schema_generator=RunFileSchema)}
        for name, model in MODELS.items()
    }
    always = _columns(signals_schema(()))
    documents[COLUMNS] = {
        "$id": schema_id(COLUMNS),
        "format_version": FORMAT_VERSION,
        "pairs": _columns(PAIRS_SCHEMA),
        "signals": always,
        **{
            f"signals.{part}": [column for column in _columns(signals_schema({part})) if column not in always]
            for part in OPTIONAL_PARTS
        },
        "signals.compact": _compact_columns(),
    }
    return {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema file; return their paths."""
    texts = schema_texts()
    with new_folder(folder):
        for name, text in texts.items():
            write_whole(folder / name, text)
    return [folder / name for name in texts]


def drifted_schemas(folder: Path) -> list[str]:
    """List the files of a folder that are not what `write_schemas` would write; empty when all are current."""
    texts = schema_texts()
    found = {path.name for path in folder.glob("*.json")}
    faults = [f"{folder / name}: missing" for name in sorted(texts.keys() - found)]
    faults += [f"{folder / name}: not a schema of this release" for name in sorted(found - texts.keys())]
    for name in sorted(texts.keys() & found):
        if (folder / name).read_text(encoding="utf-8") != texts[name]:
            faults.append(f"{folder / name}: differs")
    return faults


def _compact_columns() -> list[dict[str, Any]]:
    """Return the columns by which the codec `compact` replaces plain ones."""
    plain = _columns(signals_schema(OPTIONAL_PARTS))
    return [column for column in _columns(signals_schema(OPTIONAL_PARTS, "compact")) if column not in plain]


def _columns(schema: pa.Schema) -> list[dict[str, Any]]:
    return [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema]
