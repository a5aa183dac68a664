"""Committed schemas are what this release writes, and they accept what it writes."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from tide_cache import __version__
from tide_cache.shards.schema import FORMAT_VERSION
from tide_cache_cli.schema_files import COLUMNS, drifted_schemas, schema_texts, write_schemas

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_schemas_are_current():
    assert drifted_schemas(ROOT / "schemas") == []


def test_every_schema_says_its_version():
    """A reader that keeps a copy can tell an old one."""
    ids = {name: json.loads(text)["$id"] for name, text in schema_texts().items()}
    assert ids["train-run.json"] == f"urn:tide-cache:{__version__}:train-run"
    assert ids["manifest.json"] == f"urn:tide-cache:format-{FORMAT_VERSION}:manifest"
    assert len(set(ids.values())) == len(ids)


def test_drift_is_named_file_by_file(tmp_path):
    write_schemas(tmp_path)
    assert drifted_schemas(tmp_path) == []
    (tmp_path / "plan.json").unlink()
    (tmp_path / "manifest.json").write_text("{}\n")
    (tmp_path / "old.json").write_text("{}\n")
    assert drifted_schemas(tmp_path) == [
        f"{tmp_path / 'plan.json'}: missing",
        f"{tmp_path / 'old.json'}: not a schema of this release",
        f"{tmp_path / 'manifest.json'}: differs",
    ]


def test_every_key_of_written_documents_is_in_their_schema(built):
    texts = schema_texts()
    for name, path in (
        ("manifest.json", built.cache / "manifest.json"),
        ("plan.json", built.cache / "plan.json"),
        ("commit-record.json", built.cache / "pairs" / "shard-000000.json"),
    ):
        schema = json.loads(texts[name])
        assert schema["additionalProperties"] is False
        assert set(json.loads(path.read_text())) == set(schema["properties"])


def test_the_column_list_is_what_parquet_files_hold(built):
    columns = json.loads(schema_texts()[COLUMNS])
    for names, path in ((("pairs",), "pairs"), (("signals", "signals.topk"), "signals/plain")):
        found = pq.read_schema(built.cache / path / "shard-000000.parquet")
        listed = [entry for name in names for entry in columns[name]]
        assert [entry["name"] for entry in listed] == found.names
        assert [entry["type"] for entry in listed] == [str(field.type) for field in found]
