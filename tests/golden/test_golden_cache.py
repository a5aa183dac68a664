"""A cache of format v1 that was written by an early release is read as it was, by every later one."""

import json
import shutil
from pathlib import Path

import pytest
from golden.make_cache import NUM_SAMPLES, digest

from tide_cache.errors import CacheMismatchError
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import CacheFolder, Manifest, verify
from tide_cache.shards import NEWEST_VERSION

GOLDEN = Path(__file__).resolve().parent / "cache-v1"
CACHE_ID = "d0e471b09daef0d2"
DIGESTS = (
    "3e8a36a0c9a13ca4e50ed2b11159e24a95587a6833373a62ae24ba0fa8058d7d",
    "cce357f22421ddabc9bc26450fc8bc947fefd9f6d97b3f58dfc7edcea3b7c3b1",
)
"""Of the records of each view."""


def test_it_loads_as_it_was():
    manifest = Manifest.load(GOLDEN)
    assert manifest.identity.cache_id == CACHE_ID
    source = CacheSource(GOLDEN, manifest)
    assert tuple(digest(source.records(range(NUM_SAMPLES), epoch)) for epoch in (0, 1)) == DIGESTS


def test_it_verifies_deep():
    report = verify(GOLDEN, deep=True)
    assert report.ok, report.problems
    assert report.shards == 2


def test_its_documents_are_what_this_release_would_write(tmp_path):
    """A model that gains a field must not write it into old documents: their hashes are the cache's name."""
    shutil.copytree(GOLDEN, tmp_path / "cache")
    (tmp_path / "cache/manifest.json").unlink()
    written = CacheFolder(tmp_path / "cache").finish(["plain"])
    documents = (json.loads((root / "manifest.json").read_bytes()) for root in (GOLDEN, tmp_path / "cache"))
    old, new = ({**document, "tide_cache_version": ""} for document in documents)
    assert new == old
    assert written.identity.cache_id == CACHE_ID


READS = {
    "manifest.json": Manifest.load,
    "plan.json": lambda cache: CacheFolder(cache).plan_document,
    "pairs/shard-000000.json": lambda cache: CacheFolder(cache).is_committed("pairs", 0),
}


@pytest.mark.parametrize("name", READS)
def test_a_newer_format_is_refused_with_the_version_needed(tmp_path, name):
    cache = tmp_path / "cache"
    shutil.copytree(GOLDEN, cache)
    document = json.loads((cache / name).read_bytes())
    (cache / name).write_text(json.dumps({**document, "format_version": NEWEST_VERSION + 1, "field of the future": 1}))
    message = rf"format version {NEWEST_VERSION + 1}; this release reads up to version {NEWEST_VERSION}\.\nInstall"
    with pytest.raises(CacheMismatchError, match=message):
        READS[name](cache)
