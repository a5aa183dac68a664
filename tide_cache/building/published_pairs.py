"""The pairs table as the one copy of a corpus: published before the first forward, and read by everybody else.

Reading, rendering and pairing a corpus take as long in every process that does it. So the run that has done it
publishes the pairs of all shards at once, then `corpus.json`, which says of which files. A worker, or a later run over
the same files, reads the pairs of its own shards and no row of the corpus.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.shard import encode_table
from tide_cache.config.base import Frozen
from tide_cache.config.build import BuildRun
from tide_cache.corpus.stamps import FileStamp, stamps_of
from tide_cache.corpus.unread import KnownCorpus
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, ShardCorruptError
from tide_cache.manifest import CacheFolder
from tide_cache.manifest.documents import read_document
from tide_cache.progress import doing
from tide_cache.shards import FORMAT_VERSION, canonical_json, files_of, replace_json

NAME = "corpus.json"
MAX_BYTES = 1 << 20


class CorpusRecord(Frozen):
    """Of what files the pairs of a cache were made; written when all of them are published.

    Attributes:
        cache_id: Of the cache.
        plan_hash: Of its plan.
        corpus: How the run file describes the corpus, without the folder that it lies in.
        files: Those that were read.
        skipped: Rows that were left out, and why.
    """

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    cache_id: str
    plan_hash: str
    corpus: dict[str, Any]
    files: tuple[FileStamp, ...]
    skipped: tuple[str, ...]


def publish_pairs(
    run: BuildRun, build: PreparedBuild, folder: CacheFolder, first: int, on_shard: Callable[[], None]
) -> int:
    """Publish the pairs of every shard that lacks them, and then of what files they were made.

    Args:
        run: The run file.
        build: The same, checked; its rows were paired here.
        folder: The cache, begun.
        first: The shard to begin with; runs that start together each begin with their own.
        on_shard: Called before each shard; may raise to stop.

    Returns:
        Bytes written.
    """
    assert build.paired is not None, "rows that were paired elsewhere"
    committed = folder.listed("pairs")
    missing = [shard for shard in range(build.plan.num_shards) if shard not in committed]
    num_bytes = 0
    with doing("Publishing the pairs of all rows", len(missing), "shards") as phase:
        for shard in sorted(missing, key=lambda shard: (shard < first, shard)):
            on_shard()
            if not folder.is_committed("pairs", shard):  # another run may have come first
                header = folder.header("pairs", shard)
                encoded = encode_table(build, None, build.paired.shard(shard), header, lambda _: None)
                num_bytes += folder.commit(*encoded).size
            phase.advance()
    if build.stamps is not None:
        record = CorpusRecord(
            cache_id=build.identity.cache_id,
            plan_hash=build.plan.plan_hash(build.identity.cache_id),
            corpus=_described(run),
            files=build.stamps,
            skipped=build.corpus.skipped,
        ).model_dump(mode="json")
        if len(canonical_json(record)) < MAX_BYTES:  # else everybody reads the corpus, as where it is on a hub
            replace_json(folder.root / NAME, record, files_of(folder.root))
    return num_bytes


def known_corpus(run: BuildRun) -> KnownCorpus | None:
    """Return what is known of a run's corpus from its cache, if its files are those that the pairs were made of.

    Args:
        run: The run file.

    Returns:
        None where the corpus must be read: nothing is published, or other files are here.
    """
    folder = CacheFolder(run.build.out)
    try:
        document = folder.plan_document
        record = read_document(folder.root / NAME, CorpusRecord, MAX_BYTES, files_of(folder.root))
    except (CacheIncompleteError, CacheMismatchError, ShardCorruptError, FileNotFoundError, NotADirectoryError):
        return None  # whoever reads more of the cache says what is wrong
    ours = document.cache_id, document.plan_hash, _described(run), stamps_of(run.corpus.spec, run.corpus.folder)
    if (record.cache_id, record.plan_hash, record.corpus, record.files) != ours or not has_all_pairs(folder):
        return None
    return KnownCorpus(document.identity.corpus_hash, document.identity.num_rows, record.skipped)


def has_all_pairs(folder: CacheFolder) -> bool:
    """Return whether the pairs of every shard are committed."""
    return len(folder.listed("pairs")) == folder.plan_document.plan.num_shards


def _described(run: BuildRun) -> dict[str, Any]:
    return run.corpus.model_dump(mode="json", exclude={"folder"})
