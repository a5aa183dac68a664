"""Builds, kills, damage, reads, verifications and repairs in any order: what a reader gives is right, or it raises.

The teacher is a real function, of the sample's number alone, that needs no model: what a shard holds is decided by its
number, as it is by a real teacher. A failure prints the steps that lead to it and the blob that repeats them.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helpers.cache_examples import IDENTITY, PLAN
from helpers.crash_files import DyingFiles, KilledError
from helpers.memory_cache import IS_FULL, alike
from helpers.shard_examples import encode_both, make_shard
from tide_cache.building import repair
from tide_cache.building.repair import find_damage, repair_cache
from tide_cache.errors import CacheIncompleteError, ShardCorruptError, TideCacheError
from tide_cache.manifest import CacheFolder, Manifest, tables_of, verify
from tide_cache.shards import LocalFiles

NUM_SHARDS = 2
IDENTITY_OF_ALL = IDENTITY.model_copy(update={"num_rows": 6})
PLAN_OF_ALL = PLAN.model_copy(update={"num_rows": 6, "samples_per_shard": 3})
RULES = IDENTITY_OF_ALL.shard_rules


def encode(table, shard, header):
    pairs, signals = encode_both(shard, len(PLAN_OF_ALL.rows_of(shard)), RULES, header)
    return pairs if table == "pairs" else signals


def build(root, files):
    """What `build_cache` does, with the teacher above."""
    folder = CacheFolder(root, files)
    folder.begin(IDENTITY_OF_ALL, PLAN_OF_ALL, ["plain"])
    for shard in range(NUM_SHARDS):
        for table in tables_of(["plain"]):
            if not folder.is_committed(table, shard):
                encoded = encode(table, shard, folder.header("pairs", shard))
                folder.commit(encoded, {"samples": encoded.num_samples})
    folder.finish(["plain"])


def whole_cache():
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "cache", LocalFiles())
        return tree(Path(folder) / "cache")


def tree(root):
    """What a cache holds; the newline at the end of a document is no part of it, and a link is not what it leads to."""
    result = {}
    for path in (path for path in root.rglob("*") if path.is_file() or path.is_symlink()):
        name = path.relative_to(root)
        if name.parts[0] != "quarantine" and not name.name.startswith("."):
            content = b"(a link)" if path.is_symlink() else path.read_bytes()
            result[name.as_posix()] = content.removesuffix(b"\n") if name.suffix == ".json" else content
    return result


class LifeOfACache(RuleBasedStateMachine):
    """One folder; whoever works on it may be killed, and any byte may change."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="life-of-a-cache-"))
        self.root = self.folder / "cache"
        self.expected = whole_cache()
        self.was_damaged = False

    def teardown(self):
        shutil.rmtree(self.folder)

    @property
    def is_complete(self):
        return (self.root / "manifest.json").exists()

    @rule()
    def build_or_resume(self):
        self.attempt(LocalFiles())

    @rule(lives=st.integers(0, 60))
    def build_and_be_killed(self, lives):
        self.attempt(DyingFiles(lives))

    def attempt(self, files):
        """A build ends complete, is killed, or refuses damage by name; it never spreads it."""
        try:
            build(self.root, files)
        except KilledError:
            pass
        except TideCacheError:
            assert self.was_damaged
        else:
            assert self.is_complete

    @precondition(lambda self: self.plain_files())
    @rule(data=st.data())
    def damage(self, data):
        self.was_damaged = True
        name = data.draw(st.sampled_from(self.plain_files()), label="file")
        path = self.root / name
        kind = data.draw(st.sampled_from(["flip", "cut", "remove", "zero", "link", "replace"]), label="damage")
        content = bytearray(path.read_bytes())
        if kind == "remove":
            path.unlink()
        elif kind == "link":
            path.rename(self.folder / "elsewhere")
            path.symlink_to(self.folder / "elsewhere")
        elif kind == "replace":
            other = data.draw(st.sampled_from(self.plain_files()), label="other")
            path.write_bytes((self.root / other).read_bytes())
        elif content:
            at = data.draw(st.integers(0, len(content) - 1), label="byte")
            if kind == "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
            path.write_bytes(
                {"flip": content, "cut": content[:at], "zero": content[:at] + bytes(len(content) - at)}[kind]
            )

    @rule()
    def verify_it(self):
        """What `verify` accepts is the whole cache, byte for byte."""
        try:
            report = verify(self.root, deep=True)
        except CacheIncompleteError:
            assert not self.is_complete
        except TideCacheError:
            assert self.visible() != self.expected
        else:
            assert report.ok == (self.visible() == self.expected), report.problems

    @precondition(lambda self: self.root.exists())
    @rule()
    def repair_it(self):
        """A repair ends in the whole cache, or says why it cannot; nothing is lost."""
        before = set(self.all_bytes())
        try:
            found = find_damage(self.root)
            report = repair_cache(found, run=Run(self.root))
        except CacheIncompleteError:
            assert not self.is_complete
            return
        except TideCacheError:
            return
        finally:
            assert before <= set(self.all_bytes())
        assert report.is_repaired
        assert self.visible() == self.expected
        self.was_damaged = False

    @invariant()
    def reads_are_right_or_refused(self):
        if not hasattr(self, "root"):
            return
        try:
            manifest = Manifest.load(self.root)
        except TideCacheError:
            return
        for shard in range(NUM_SHARDS):
            try:
                pairs = manifest.reader(self.root, "pairs", shard).read_pairs(0)
                views = [manifest.reader(self.root, "plain", shard).read_signals(view, 0, pairs) for view in range(2)]
            except ShardCorruptError:
                continue
            assert alike(pairs, TRUTH[shard][0])
            assert alike([record.view for view in views for record in view], TRUTH[shard][1])

    def visible(self):
        return tree(self.root) if hasattr(self, "root") and self.root.exists() else {}

    def plain_files(self):
        return sorted(name for name in self.visible() if not (self.root / name).is_symlink())

    def all_bytes(self):
        return [path.read_bytes() for path in self.root.rglob("*.parquet") if path.is_file()]


class Run:
    """Stands for the run file; the functions below take what they need from it."""

    def __init__(self, root):
        self.root = root


def _truth(shard):
    _, pairs, records = make_shard(shard, len(PLAN_OF_ALL.rows_of(shard)), RULES)
    return pairs, [record.view for view in records for record in view]


TRUTH = [_truth(shard) for shard in range(NUM_SHARDS)]


@pytest.fixture
def teacher_of_numbers(monkeypatch):
    """Put the teacher above in the place of a model: only the three functions that load one are replaced."""

    class Prepared:
        identity, plan, passes = IDENTITY_OF_ALL, PLAN_OF_ALL, ("plain",)

    def encode_table(build, teacher, paired, header, on_views):
        return encode(header.table, header.shard, header), {}

    monkeypatch.setattr(repair, "prepare_build", lambda run: Prepared())
    monkeypatch.setattr(repair, "replace", lambda prepared, **changes: prepared)
    monkeypatch.setattr(repair, "load_teacher", lambda *_: None)
    monkeypatch.setattr(repair, "resolve_device", lambda _: "cpu")
    monkeypatch.setattr(repair.InProcess, "check", lambda *_: None)
    monkeypatch.setattr(repair, "pair_rows", lambda *_: None)
    monkeypatch.setattr(repair, "encode_table", encode_table)
    monkeypatch.setattr(repair, "build_prepared", lambda run, *_: build(run.root, LocalFiles()))
    monkeypatch.setattr(Run, "teacher", type("Section", (), {"device": "cpu"}), raising=False)


def test_the_life_of_a_cache(teacher_of_numbers):
    run_state_machine_as_test(
        LifeOfACache,
        settings=settings(
            max_examples=100 if IS_FULL else 12,
            stateful_step_count=30 if IS_FULL else 15,
            deadline=None,
            print_blob=True,
            phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes; the steps are short as they are
            derandomize=not IS_FULL,
            suppress_health_check=list(HealthCheck),
        ),
    )
