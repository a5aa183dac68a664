"""The corpus is read and paired once for a build: workers and later runs read published pairs, to the same bytes."""

import os
import shutil

import numpy as np
import pytest

from tide_cache.building import rows
from tide_cache.building.driver import build_cache, build_prepared, prepare_with_room
from tide_cache.building.estimate import estimate_build
from tide_cache.building.prepare import prepare_build
from tide_cache.building.published_pairs import NAME, known_corpus
from tide_cache.building.shard import pair_rows
from tide_cache.building.worker import ShardWorker
from tide_cache.corpus import open_corpus
from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.manifest import verify
from tide_cache.pairing import TextTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


class StoppedError(Exception):
    """Stands for a kill."""


def stop(progress):
    raise StoppedError


@pytest.fixture
def no_reading(monkeypatch):
    """Nobody reads the corpus any more."""

    def install():
        monkeypatch.setattr(rows, "open_corpus", lambda *_, **__: pytest.fail("the corpus was read"))

    return install


@pytest.fixture
def begun(tmp_path, run_in, corpus_file):
    """A build of its own corpus, stopped before its first forward."""
    shutil.copy(corpus_file, tmp_path / "own.jsonl")
    run = run_in(tmp_path / "cache", corpus__spec="own.jsonl", corpus__folder=str(tmp_path))
    with pytest.raises(StoppedError):
        build_cache(run, stop)
    return run


def test_all_pairs_are_published_before_the_first_forward(begun):
    root = begun.build.out
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    pairs = [f"pairs/shard-00000{shard}.{ending}" for shard in range(5) for ending in ("json", "parquet")]
    assert names == sorted(["build.json", NAME, "plan.json", *pairs])


def test_a_later_run_reads_no_row_and_ends_in_the_same_bytes(begun, no_reading, tree):
    no_reading()
    assert build_cache(begun).num_samples == 40
    found = tree(begun.build.out)
    assert verify(begun.build.out, deep=True).ok
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "open_corpus", open_corpus)
        shutil.rmtree(begun.build.out)
        build_cache(begun)
    assert tree(begun.build.out) == found


def test_a_worker_elsewhere_reads_the_pairs_of_its_shards_alone(begun, no_reading):
    read = prepare_build(begun)
    no_reading()
    worker = ShardWorker.elsewhere(begun, "cpu")
    for shard in (0, 4):
        one, other = pair_rows(worker._build, shard), pair_rows(read, shard)
        assert (one.indexes, one.report) == (other.indexes, other.report)
        for pair, expected in zip(one.pairs, other.pairs, strict=True):
            assert pair.sample_id == expected.sample_id
            for name in ("student_ids_L", "is_supervised_L", "teacher_ids_M", "chunks_C4"):
                np.testing.assert_array_equal(getattr(pair, name), getattr(expected, name))
                assert getattr(pair, name).dtype == getattr(expected, name).dtype
    assert worker._build.identity == read.identity
    worker.close()


@pytest.mark.parametrize("kinds", [("truth", "topk"), ("truth", "topk", "chunks")])
def test_a_worker_elsewhere_reads_tokenizers_for_candidate_chunks_alone(tmp_path, run_in, tree, monkeypatch, kinds):
    run = run_in(tmp_path / "cache", signals__kinds=kinds, signals__top_k=16)
    whole = run_in(tmp_path / "whole", signals__kinds=kinds, signals__top_k=16)
    build_cache(whole)
    with pytest.raises(StoppedError):
        build_cache(run, stop)
    loaded, load = [], TextTokenizer.load
    monkeypatch.setattr(TextTokenizer, "load", lambda path, **options: loaded.append(path) or load(path, **options))
    worker = ShardWorker.elsewhere(run, "cpu")
    worker.build(1, lambda _: None).result()
    worker.close()
    assert bool(loaded) == ("chunks" in kinds)
    name = "signals/plain/shard-000001.parquet"
    assert tree(tmp_path / "cache")[name] == tree(tmp_path / "whole")[name]


def test_a_worker_elsewhere_that_finds_another_tokenizer_writes_no_chunks(tmp_path, run_in, vocabularies):
    own = shutil.copytree(vocabularies.second, tmp_path / "own")
    run = run_in(tmp_path / "cache", student__tokenizer={"path": str(own)}, signals__kinds=("truth", "chunks"))
    with pytest.raises(StoppedError):
        build_cache(run, stop)
    shutil.rmtree(own)
    shutil.copytree(vocabularies.first, own)
    worker = ShardWorker.elsewhere(run, "cpu")
    with pytest.raises(CacheMismatchError, match="student_tokenizer"):
        worker.build(1, lambda _: None)
    worker.close()
    assert not (tmp_path / "cache/signals/plain/shard-000001.json").exists()


def test_the_estimate_of_published_pairs_is_that_of_the_rows(begun, no_reading):
    expected = estimate_build(prepare_build(begun))
    no_reading()
    found = estimate_build(prepare_with_room(begun))
    assert found.cache_bytes == pytest.approx(expected.cache_bytes, rel=0.1)
    assert found.masked_positions == pytest.approx(expected.masked_positions, rel=0.1)


def test_files_that_were_touched_are_read_again_and_then_known(begun, tmp_path):
    os.utime(tmp_path / "own.jsonl", (1, 1))
    assert known_corpus(begun) is None
    build_cache(begun)
    assert known_corpus(begun) is not None


@pytest.mark.parametrize("change", ["row", "setting", "name", "record", "pairs"])
def test_another_corpus_is_never_taken_for_the_published_one(begun, tmp_path, change):
    root = begun.build.out
    if change == "row":
        lines = (tmp_path / "own.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "own.jsonl").write_text("".join(reversed(lines)))
    elif change == "setting":
        begun = begun.model_copy(update={"corpus": begun.corpus.model_copy(update={"on_bad_row": "skip"})})
    elif change == "name":
        shutil.copy2(tmp_path / "own.jsonl", tmp_path / "other.jsonl")
        begun = begun.model_copy(update={"corpus": begun.corpus.model_copy(update={"spec": "other.jsonl"})})
    elif change == "record":
        (root / NAME).write_text("{")
    else:
        (root / "pairs/shard-000002.json").unlink()
    assert known_corpus(begun) is None
    if change in ("row", "name"):
        with pytest.raises(CacheMismatchError, match="corpus_hash"):
            build_cache(begun)


def test_a_run_that_verifies_reads_the_corpus_and_hashes_shards(begun, monkeypatch):
    build_cache(begun)
    path = begun.build.out / "pairs/shard-000001.parquet"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    build_cache(begun)  # trusts the record; readers and `verify` do not
    build = prepare_with_room(begun, is_verified=True)
    assert build.paired is not None
    with pytest.raises(ShardCorruptError, match=r"shard-000001\.parquet: found .*, the commit record says"):
        build_prepared(begun, build, is_verified=True)
