"""A build can stop anywhere and go on; it ends in a manifest that covers the plan, or in none."""

import json
import re
from dataclasses import replace

import pytest

from helpers.cache_examples import IDENTITY, PLAN, Builder
from helpers.crash_files import DyingFiles, KilledError
from helpers.shard_examples import assert_pairs_equal, assert_records_equal, make_compdemo, make_shard
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, ShardCorruptError, TideCacheError
from tide_cache.manifest import CacheFolder, Manifest, tables_of, verify
from tide_cache.shards import NEWEST_VERSION, LocalFiles


def test_a_complete_cache_reads_back(builder):
    written = builder.finish()
    manifest = Manifest.load(builder.root)
    assert manifest == written
    assert manifest.totals["plain"]["samples"] == 10
    assert manifest.totals["plain"]["column_bytes.topk_ids"] > 0
    assert sorted(builder.tree()) == sorted(
        ["manifest.json", "plan.json"]
        + [f"{f}/shard-00000{i}.{e}" for f in ("pairs", "signals/plain") for i in range(3) for e in ("json", "parquet")]
    )
    for shard in range(PLAN.num_shards):
        _, pairs, records = make_shard(shard, len(PLAN.rows_of(shard)), IDENTITY.shard_rules)
        found = manifest.reader(builder.root, "pairs", shard).read_pairs(0)
        assert_pairs_equal(found, pairs)
        reader = manifest.reader(builder.root, "plain", shard)
        for view in range(2):
            assert_records_equal(reader.read_signals(view, 0, found), records[view], "float16")


def test_a_resumed_build_is_byte_identical(builder, tmp_path):
    builder.build(range(1))
    resumed = builder.folder()
    is_there = [resumed.is_committed(table, shard) for table in tables_of(["plain"]) for shard in range(3)]
    assert is_there == [True, False, False] * 2
    builder.finish()
    other = Builder(tmp_path / "undisturbed")
    other.finish()
    assert builder.tree() == other.tree()


def build_with(files, root, plan, shards, passes):
    """Build from encoded shards, as a worker does; gives the manifest."""
    folder = CacheFolder(root, files)
    folder.begin(IDENTITY, plan, passes)
    for encoded in shards:
        table = encoded.header.table
        if table in tables_of(passes) and not folder.is_committed(table, encoded.header.shard):
            folder.commit(encoded, {"samples": encoded.num_samples, "share": 0.5})
    return folder.finish(passes)


def visible(root):
    return {name: data for name, data in Builder(root).tree().items() if not name.endswith(".tmp")}


def test_a_build_killed_at_any_step_resumes_byte_identical(tmp_path):
    plan, passes = PLAN.model_copy(update={"samples_per_shard": 5}), ("plain",)
    undisturbed = Builder(tmp_path / "undisturbed", plan)
    undisturbed.finish()
    expected = undisturbed.tree()
    shards = [encoded for shard in range(plan.num_shards) for encoded in undisturbed.shards(shard)]
    deaths = 0
    while True:
        root = tmp_path / f"killed-{deaths}"
        try:
            build_with(DyingFiles(deaths), root, plan, shards, passes)
        except KilledError:
            build_with(LocalFiles(), root, plan, shards, passes)
            assert visible(root) == expected, f"killed at step {deaths}"
            deaths += 1
        else:
            break
    assert deaths > 40


def test_a_pass_is_added_without_touching_what_is_there_whenever_it_is_killed(tmp_path):
    """The manifest is the only file that changes; until it does, and after, the cache is whole."""
    plan, both = PLAN.model_copy(update={"samples_per_shard": 5}), ("plain", "compdemo")
    at_once = Builder(tmp_path / "at-once", plan, both)
    at_once.finish()
    shards = [encoded for shard in range(plan.num_shards) for encoded in at_once.shards(shard)]
    deaths, listed = 0, set()
    while True:
        root = tmp_path / f"killed-{deaths}"
        build_with(LocalFiles(), root, plan, shards, ["plain"])
        before = Builder(root).tree()
        try:
            build_with(DyingFiles(deaths), root, plan, shards, both)
        except KilledError:
            after = visible(root)
            assert {name: after[name] for name in before if name != "manifest.json"} == {
                name: data for name, data in before.items() if name != "manifest.json"
            }
            listed.add(Manifest.load(root).passes)
            assert verify(root, deep=True).ok
            build_with(LocalFiles(), root, plan, shards, ["plain"])  # the build that was there is still complete
            build_with(LocalFiles(), root, plan, shards, both)
            assert visible(root) == at_once.tree(), f"killed at step {deaths}"
            deaths += 1
        else:
            break
    assert deaths > 15
    assert listed == {("plain",), both}


def test_a_build_of_one_pass_leaves_the_others_in_the_manifest(builder):
    builder.finish()
    builder.passes = ("compdemo",)
    assert builder.finish().passes == ("plain", "compdemo")
    builder.passes = ("plain",)
    assert builder.finish().passes == Manifest.load(builder.root).passes == ("plain", "compdemo")


def test_a_cache_may_hold_the_compdemo_pass_alone(builder):
    builder.passes = ("compdemo",)
    manifest = builder.finish()
    assert manifest.tables == ("pairs", "compdemo")
    assert verify(builder.root, deep=True).shards == 6
    _, pairs, records = make_shard(1, 4, IDENTITY.shard_rules)
    found = manifest.reader(builder.root, "compdemo", 1).read_signals(1, 0, pairs)
    assert_records_equal(found, make_compdemo(1, records)[1], "float16")


def test_a_pass_that_is_being_added_is_counted_when_it_lacks_shards(builder):
    builder.finish()
    builder.passes = ("plain", "compdemo")
    folder = builder.build(range(2))
    with pytest.raises(CacheIncompleteError, match=r"committed: pairs 3 of 3, plain 3 of 3, compdemo 2 of 3\."):
        folder.finish(builder.passes)
    assert Manifest.load(builder.root).passes == ("plain",)


def test_a_lost_pass_does_not_fall_out_of_the_manifest_unseen(builder):
    builder.passes = ("plain", "compdemo")
    folder = builder.build()
    folder.finish(builder.passes)
    (builder.root / "signals/compdemo/shard-000001.json").unlink()
    with pytest.raises(CacheIncompleteError, match=r"compdemo 2 of 3\."):
        folder.finish(["plain"])


def test_damage_to_an_added_pass_is_found(builder, flip):
    builder.passes = ("plain", "compdemo")
    builder.finish()
    assert verify(builder.root).shards == 9
    flip(builder.root / "signals/compdemo/shard-000002.parquet", 60)
    assert [problem.shard for problem in verify(builder.root).problems] == ["signals/compdemo/shard-000002.parquet"]


def test_a_cache_from_before_the_compdemo_pass_loads_and_can_get_it(builder):
    """Its documents do not say demo_ratio, and its id is the one it had."""
    manifest = builder.finish()
    for name in ("plan.json", "manifest.json"):
        assert "demo_ratio" not in (builder.root / name).read_text()
    assert (manifest.identity.cache_id, manifest.plan.plan_hash(manifest.identity.cache_id)) == (
        "890d74209af27170",
        "7b5fa0b4ce05c005",
    )
    assert Manifest.load(builder.root).identity.views.demo_ratio == 0.5


def test_a_repeated_build_changes_nothing(builder):
    builder.finish()
    before = builder.tree()
    builder.finish()
    assert builder.tree() == before


def test_another_build_is_refused_with_every_field(builder):
    builder.build(range(1))
    with pytest.raises(CacheMismatchError) as error:
        CacheFolder(builder.root).begin(
            IDENTITY.model_copy(update={"corpus_hash": "0" * 64}),
            PLAN.model_copy(update={"batch_tokens": 1}),
            ["plain"],
        )
    message = str(error.value)
    assert message.startswith(f"{builder.root / 'plan.json'} was built from other inputs:\n")
    assert f"  identity.corpus_hash: cache has '{'c' * 64}', run declares '{'0' * 64}'\n" in message
    assert "  plan.batch_tokens: cache has 8192, run declares 1\n" in message


def test_two_builds_that_begin_at_once_agree_on_one(builder, monkeypatch):
    """The second sees no plan.json, and meets one when it publishes its own."""
    builder.folder()
    monkeypatch.setattr(LocalFiles, "list_folder", lambda self, folder: [])
    with pytest.raises(CacheMismatchError, match=r"plan\.head_rows: cache has 1024, run declares 1"):
        CacheFolder(builder.root).begin(IDENTITY, PLAN.model_copy(update={"head_rows": 1}), ["plain"])
    CacheFolder(builder.root).begin(IDENTITY, PLAN, ["plain"])


def test_a_folder_with_other_things_is_refused(tmp_path):
    for name in "abcdefg":
        (tmp_path / name).touch()
    with pytest.raises(CacheMismatchError, match=r"found a, b, c, d, e, \.\.\., but no plan\.json.*\n.*new folder"):
        CacheFolder(tmp_path).begin(IDENTITY, PLAN, ["plain"])


def test_an_interrupted_build_says_how_far_it_came(builder):
    folder = builder.build(range(2))
    for attempt in (lambda: folder.finish(["plain"]), lambda: Manifest.load(builder.root)):
        with pytest.raises(CacheIncompleteError) as error:
            attempt()
        assert "has not finished: shards committed: pairs 2 of 3, plain 2 of 3.\n" in str(error.value)
        assert "Run the same `tide-cache build-teacher-shards` command again" in str(error.value)
    assert not (builder.root / "manifest.json").exists()


def test_a_folder_that_is_no_cache(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(CacheIncompleteError, match=r"no cache here: found neither manifest\.json nor plan\.json"):
            Manifest.load(root)


def test_a_shard_without_its_record_is_not_committed(builder):
    folder = builder.build(range(1))
    (builder.root / "pairs/shard-000000.json").unlink()
    assert not folder.is_committed("pairs", 0)
    builder.build(range(1))
    assert folder.is_committed("pairs", 0)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_record_without_its_shard_is_refused(builder, flip, damage):
    folder = builder.build(range(1))
    path = builder.root / "signals/plain/shard-000000.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        flip(path, 100)
        assert folder.is_committed("plain", 0), "a record is trusted; readers check the hash of what they read"
    with pytest.raises(
        ShardCorruptError, match=r"shard-000000\.parquet: found .*, the commit record says \d+ bytes"
    ) as e:
        folder.is_committed("plain", 0, is_hashed=True)
    assert "Delete it and shard-000000.json beside it" in str(e.value)


def test_a_record_of_another_shard_is_refused(builder):
    folder = builder.build(range(2))
    (builder.root / "pairs/shard-000001.json").write_bytes((builder.root / "pairs/shard-000000.json").read_bytes())
    with pytest.raises(
        ShardCorruptError, match=r"shard-000001\.json: found the record of .*shard=0.*expected.*shard=1"
    ):
        folder.is_committed("pairs", 1)


def test_a_shard_of_another_build_is_not_committed(builder):
    encoded = builder.shards(0)[0]
    stranger = replace(encoded, header=replace(encoded.header, cache_id="0" * 16))
    with pytest.raises(AssertionError, match="a shard of another build"):
        builder.folder().commit(stranger, {})


def test_a_recomputed_shard_does_not_slip_under_an_old_manifest(builder):
    folder = builder.build()
    folder.finish(["plain"])
    for suffix in (".parquet", ".json"):
        (builder.root / "pairs/shard-000001").with_suffix(suffix).unlink()
    (builder.root / "signals/plain/shard-000001.json").unlink()
    folder.commit(builder.shards(1)[0], {"samples": 4})
    folder.commit(builder.shards(1)[1], {"samples": 4, "share": 0.5})
    with pytest.raises(ShardCorruptError, match=r"entry of pairs shard 1 is not the commit record(?s:.*)accept it"):
        folder.finish(["plain"])


def test_a_full_disk_is_a_message(builder, monkeypatch):
    folder, encoded = builder.folder(), builder.shards(0)[0]

    def full(self, path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFiles, "write_new", full)
    with pytest.raises(TideCacheError, match=r"shard-000000\.parquet: cannot be written: No space left on device"):
        folder.commit(encoded, {})
    assert not folder.is_committed("pairs", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["shards"].pop("plain"), r"found tables \['pairs'\], expected pairs and one of plain, comp"),
        (lambda d: d["shards"].pop("pairs"), r"found tables \['plain'\], expected pairs and one of plain, comp"),
        (lambda d: d["shards"]["plain"].pop(), "plain: found 2 shards, the plan says 3"),
        (lambda d: d["shards"]["pairs"].reverse(), "pairs shard 0 belongs to another cache, plan or shard"),
        (lambda d: d["identity"]["views"].update(seed=9), "pairs shard 0 belongs to another cache"),
        (lambda d: d["plan"].update(batch_tokens=9), "pairs shard 0 belongs to another cache, plan"),
        (lambda d: d["totals"]["plain"].update(samples=9), "plain: totals are not the sums"),
        (
            lambda d: d["shards"]["plain"][1].update(num_samples=3, checksum=None),
            "shard 1: found 4 pairs and plain signals of 3 samples",
        ),
        (lambda d: d.pop("complete"), "not what the format says: complete: Field required"),
        (lambda d: d.update(complete=False), "complete: Input should be True"),
        (lambda d: d.update(extra=1), "extra: Extra inputs are not permitted"),
        (
            lambda d: d["shards"]["plain"][1].update(size="5"),
            r"shards\.plain\.1\.size: Input should be a valid integer",
        ),
        (lambda d: d["shards"]["plain"][1].update(num_rows=3), "row groups of 8 rows in all, num_rows 3"),
        (lambda d: d.pop("format_version"), "found format_version None, expected a number"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(cache, change, message):
    path = cache / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ShardCorruptError, match=message) as error:
        Manifest.load(cache)
    assert str(path) in str(error.value)
    assert "tide-cache build-teacher-shards" in str(error.value)


@pytest.mark.parametrize(
    ("name", "version"), [("manifest.json", NEWEST_VERSION + 1), ("plan.json", NEWEST_VERSION + 1)]
)
def test_a_newer_version_is_refused_with_the_version_needed(cache, name, version):
    """Before its unknown fields are."""
    document = {**json.loads((cache / name).read_bytes()), "format_version": version, "something_new": 1}
    (cache / name).write_text(json.dumps(document))
    with pytest.raises(CacheMismatchError, match=f"tide-cache that reads format version {version}"):
        Manifest.load(cache) if name == "manifest.json" else CacheFolder(cache).begin(IDENTITY, PLAN, ["plain"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "found format_version None"),
        (b"\xff{}", "can't decode byte"),
        (b'{"format_version":1,"format_version":1}', "a key occurs twice"),
        (b'{"format_version":true}', "found format_version True"),
        (b"[" * 100_000, "not a document of a cache"),
        (b" " * ((64 << 20) + 1), "found 67108865 bytes, expected at most 67108864"),
    ],
    ids=["empty", "list", "not utf-8", "repeated key", "no number", "deep", "huge"],
)
def test_hostile_documents_are_refused(cache, data, message):
    (cache / "manifest.json").write_bytes(data)
    with pytest.raises(ShardCorruptError, match=message):
        Manifest.load(cache)


def test_two_results_for_one_shard_are_both_set_aside_and_the_shard_is_missing_again(builder):
    builder.finish()
    expected = builder.tree()
    folder, shard = builder.folder(), builder.shards(1)[0]
    name = "pairs/shard-000001.parquet"
    other = replace(shard, data=shard.data[:-1] + b"?")
    with pytest.raises(ShardCorruptError) as caught:
        folder.commit(other, {})
    kept = {path for path in builder.tree() if path.startswith("quarantine/")}
    assert len(kept) == 2
    assert all(re.fullmatch(r"quarantine/pairs-shard-000001-[0-9a-f]{8}\.parquet", path) for path in kept)
    assert {builder.tree()[path] for path in kept} == {shard.data, other.data}
    message = str(caught.value)
    assert message.startswith(f"{builder.root / name}: two workers computed different bytes for this shard")
    assert all(str(builder.root / path) in message for path in kept)
    assert "run the same command again: the shard is computed anew" in message
    gone = {name, "pairs/shard-000001.json", "manifest.json"}
    assert set(builder.tree()) == {*expected, *kept} - gone
    assert not folder.is_committed("pairs", 1)
    builder.finish()
    assert {path: data for path, data in builder.tree().items() if path not in kept} == expected


def test_a_build_that_began_while_its_folder_was_listed_is_no_stranger(builder, monkeypatch):
    builder.folder()
    monkeypatch.setattr(LocalFiles, "list_folder", lambda self, folder: ["pairs"])
    CacheFolder(builder.root).begin(IDENTITY, PLAN, ["plain"])
    CacheFolder(builder.root).require_fits(IDENTITY, PLAN)


@pytest.mark.parametrize("step", ["make_folder", "sync_folder"])
def test_a_folder_that_cannot_be_made_or_synced_is_a_message(builder, monkeypatch, step):
    def broken(self, folder):
        raise OSError(5, "Input/output error", str(folder))

    folder = builder.build() if step == "sync_folder" else None
    monkeypatch.setattr(LocalFiles, step, broken)
    with pytest.raises(TideCacheError, match=r"cannot be written: Input/output error \(errno 5\)"):
        builder.folder() if folder is None else folder.finish(["plain"])


def test_a_manifest_of_another_pass_that_comes_first_is_joined_not_refused(builder, monkeypatch):
    """Two builds of two passes finish at once: each found no manifest, and the second meets the first's."""
    builder.passes = ("plain", "compdemo")
    builder.build()
    builder.folder().finish(["compdemo"])
    listed = LocalFiles.list_folder
    seen = []

    def late(self, folder):
        names = listed(self, folder)
        seen.append(folder)
        return [name for name in names if name != "manifest.json"] if len(seen) == 1 else names

    folder = CacheFolder(builder.root)
    monkeypatch.setattr(LocalFiles, "list_folder", late)
    assert folder.finish(["plain"]).passes == ("plain", "compdemo")
    assert Manifest.load(builder.root).passes == ("plain", "compdemo")


def test_a_manifest_that_is_replaced_while_it_is_read_is_the_one_or_the_other(builder, monkeypatch):
    builder.finish()
    builder.passes = ("plain", "compdemo")
    folder = builder.build()
    size_of = LocalFiles.size

    def size_before(self, path):
        found = size_of(self, path)
        if path.name == "manifest.json":
            monkeypatch.setattr(LocalFiles, "size", size_of)
            folder.finish(["compdemo"])
        return found

    monkeypatch.setattr(LocalFiles, "size", size_before)
    assert Manifest.load(builder.root).passes == ("plain", "compdemo")
