"""Hostile documents are refused at once, in a typed error, without leaving the cache's folder."""

import json
import os
import time
from pathlib import Path

import pytest

from helpers.memory_cache import RECORDS, ROOT, SHARDS, MemoryCache
from tide_cache.errors import CacheMismatchError, ShardCorruptError, TideCacheError
from tide_cache.manifest import CacheFolder, Manifest, WholeManifest, verify

LIMIT_S = 2.0
"""Per document, on a busy machine; the law is 100 ms, which test_bombs.py measures in a process of its own."""

DEEP = b"[" * 50_000 + b"]" * 50_000


def edited(document, path, value):
    """A document with one entry replaced; `path` may end in a name that is new."""
    result = json.loads(document)
    here = result
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return json.dumps(result).encode()


def raw(document, path, literal):
    """The same with a literal that Python would not write."""
    return edited(document, path, "@@").replace(b'"@@"', literal)


ENTRY = ("shards", "pairs", 0)
HOSTILE = {
    "empty": lambda d: b"",
    "not UTF-8": lambda d: d.replace(b"qwen3", b"qw\xff\xfe3"),
    "lone surrogate": lambda d: raw(d, ["tide_cache_version"], b'"\\ud800"'),
    "NUL": lambda d: d.replace(b"qwen3", b"qw\x00n3"),
    "deep lists": lambda d: DEEP,
    "deep objects": lambda d: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep inside": lambda d: raw(d, ["identity", "teacher"], DEEP),
    "repeated key": lambda d: d.replace(b'{"complete":true', b'{"complete":true,"complete":true'),
    "repeated key inside": lambda d: d.replace(b'"view', b'"seed":1,"view', 1),
    "NaN": lambda d: raw(d, ["identity", "signals", "top_p"], b"NaN"),
    "NaN statistic": lambda d: raw(d, [*ENTRY, "statistics", "share"], b"NaN"),
    "Infinity": lambda d: raw(d, ["totals", "pairs", "share"], b"Infinity"),
    "-Infinity": lambda d: raw(d, ["totals", "pairs", "share"], b"-Infinity"),
    "overflow to infinity": lambda d: raw(d, ["identity", "signals", "top_p"], b"1e999"),
    "overflow in a list": lambda d: raw(d, ["identity", "signals", "temperatures"], b"[1.0, 1e999]"),
    "overflow in a scalar": lambda d: raw(d, ["identity", "teacher", "scale"], b"-1e999"),
    "10,000 digits": lambda d: raw(d, [*ENTRY, "size"], b"9" * 10_000),
    "4,000 digits": lambda d: raw(d, [*ENTRY, "size"], b"9" * 4_000),
    "4,000 digits in statistics": lambda d: raw(d, [*ENTRY, "statistics", "samples"], b"9" * 4_000),
    "4,000 digits in the plan": lambda d: raw(d, ["plan", "num_rows"], b"9" * 4_000),
    "10,000 decimals": lambda d: raw(d, ["identity", "signals", "top_p"], b"0." + b"1" * 10_000),
    "version as text": lambda d: edited(d, ["format_version"], "1"),
    "version true": lambda d: edited(d, ["format_version"], True),
    "version zero": lambda d: edited(d, ["format_version"], 0),
    "a list": lambda d: b"[1]",
    "null": lambda d: b"null",
    "unknown field": lambda d: edited(d, ["__class__"], "os.system"),
    "path as table": lambda d: d.replace(b'"plain"', b'"../../etc"'),
    "path as shard": lambda d: edited(d, [*ENTRY, "shard"], "../../etc/passwd"),
    "negative shard": lambda d: edited(d, [*ENTRY, "shard"], -1),
    "shard of seven digits": lambda d: edited(d, [*ENTRY, "shard"], 1_000_000),
    "negative size": lambda d: edited(d, [*ENTRY, "size"], -1),
    "float count": lambda d: edited(d, [*ENTRY, "num_samples"], 66.0),
    "true count": lambda d: edited(d, [*ENTRY, "num_samples"], True),
    "short hash": lambda d: edited(d, [*ENTRY, "sha256"], "ab"),
    "hash with a newline": lambda d: edited(d, [*ENTRY, "sha256"], "a" * 64 + "\n"),
    "billions of samples": lambda d: edited(d, [*ENTRY, "num_samples"], 10**12),
    "billions of rows": lambda d: edited(edited(d, [*ENTRY, "num_rows"], 10**12), [*ENTRY, "row_groups"], [10**12]),
    "no row groups": lambda d: edited(edited(d, [*ENTRY, "num_rows"], 0), [*ENTRY, "row_groups"], []),
    "billions of shards": lambda d: edited(d, ["plan"], {**json.loads(d)["plan"], "num_rows": 10**15}),
    "no table": lambda d: edited(d, ["shards"], {}),
    "not complete": lambda d: edited(d, ["complete"], False),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(cache, name):
    data = HOSTILE[name](cache.content["manifest.json"])
    assert data != cache.content["manifest.json"], "nothing was changed"
    started_s = time.process_time()
    with pytest.raises((ShardCorruptError, CacheMismatchError)) as error:
        Manifest.load(ROOT, cache.changed(**{"manifest.json": data}))
    assert time.process_time() - started_s < LIMIT_S
    assert len(str(error.value)) < 20_000
    assert "manifest.json" in str(error.value)


SHARED = ("empty", "not UTF-8", "deep lists", "deep objects", "version as text", "a list", "null", "unknown field")


@pytest.mark.parametrize("name", SHARED)
def test_hostile_plans_and_records_are_refused(cache, name):
    plan = cache.changed(**{"plan.json": HOSTILE[name](cache.content["plan.json"])})
    with pytest.raises(ShardCorruptError, match=r"plan\.json"):
        CacheFolder(ROOT, plan).require_fits(cache.manifest.identity, cache.manifest.plan)
    if name != "not UTF-8":  # a record has no word to break
        record = cache.changed(**{RECORDS[0]: HOSTILE[name](cache.content[RECORDS[0]])})
        with pytest.raises(ShardCorruptError, match=r"shard-000000\.json"):
            CacheFolder(ROOT, record).is_committed("pairs", 0)


def with_identity(cache, *changes):
    """A forged manifest whose cache id, plan hash and entries all agree with a changed identity.

    Its entries have no checksum, as the first caches had none: a forger can leave it out, or compute it.
    """
    document = json.loads(cache.content["manifest.json"])
    for path, value in changes:
        here = document
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value
    manifest = WholeManifest.model_validate_json(json.dumps(document), strict=True)
    cache_id = manifest.identity.cache_id
    for table in document["shards"].values():
        for entry in table:
            entry |= {"cache_id": cache_id, "plan_hash": manifest.plan.plan_hash(cache_id), "checksum": None}
    return cache.changed(**{"manifest.json": json.dumps(document).encode()})


FORGED = {
    "no temperature 1": ([(["identity", "signals", "temperatures"], [2.0, 3.0])], "1.0 is missing"),
    "more views": ([(["identity", "views", "num_views"], 10**12)], "row groups, not those of 66 samples"),
    "larger shards": ([(["plan", "samples_per_shard"], 68)], "belongs elsewhere"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_manifest_is_refused_when_it_is_consistent(cache, name):
    """Hashes do not help against one who can compute them; what is declared must be possible."""
    changes, problem = FORGED[name]
    forged = with_identity(cache, *changes)

    def read_all():
        manifest = Manifest.load(ROOT, forged)
        for key in cache.records:
            forged.read_group(*key, found=cache.records, manifest=manifest)

    with pytest.raises(ShardCorruptError, match=problem):
        read_all()


def test_a_huge_document_is_refused_unread(tmp_path, cache):
    lay_out(tmp_path, cache)
    for name, load in (("manifest.json", lambda: Manifest.load(tmp_path)),
                       ("plan.json", lambda: CacheFolder(tmp_path).plan_document),
                       (RECORDS[0], lambda: CacheFolder(tmp_path).is_committed("pairs", 0))):  # fmt: skip
        good = (tmp_path / name).read_bytes()
        os.truncate(tmp_path / name, 1 << 40)
        with pytest.raises(ShardCorruptError, match=rf"found {1 << 40} bytes, expected at most"):
            load()
        (tmp_path / name).write_bytes(good)


def lay_out(root: Path, cache: MemoryCache) -> None:
    for name, data in cache.content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", RECORDS[0], SHARDS[0], SHARDS[3]])
@pytest.mark.parametrize("kind", ["link", "link to a pipe", "pipe", "folder", "dangling link", "link to itself"])
def test_only_plain_files_are_read(tmp_path, cache, name, kind):
    """A link would leave the cache's folder, and a pipe would make the reader wait for ever."""
    root = tmp_path / "cache"
    lay_out(root, cache)
    path = root / name
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere" if kind == "dangling link" else path)
    started_s = time.process_time()
    report = verify(root)
    assert time.process_time() - started_s < LIMIT_S
    assert not report.ok
    (problem,) = report.problems
    assert problem.file == name
    assert any(words in problem.problem for words in ("is a symbolic link", "is not a plain file"))


@pytest.mark.parametrize("folder", ["pairs", "signals", "signals/plain"])
def test_a_folder_that_leads_out_of_the_cache_is_refused(tmp_path, cache, folder):
    root = tmp_path / "cache"
    lay_out(root, cache)
    (root / folder).rename(tmp_path / "elsewhere")
    (root / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheMismatchError, match=rf"{folder}: is a symbolic link; a cache ends at its own folder"):
        Manifest.load(root)


def test_the_cache_itself_may_be_reached_by_a_link(tmp_path, cache):
    lay_out(tmp_path / "cache", cache)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    assert verify(tmp_path / "link", deep=True).ok
    assert issubclass(ShardCorruptError, TideCacheError)
