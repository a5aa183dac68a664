"""A cache of many shards: a small head and hashed parts; the same cache to every reader, damage named by part."""

import hashlib
import json
import pickle
import threading
import time

import pytest

from helpers.cache_examples import IDENTITY, PLAN, Builder
from helpers.shard_examples import assert_pairs_equal, assert_records_equal, make_shard
from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.locations import RemotePath
from tide_cache.manifest import CacheFolder, CommitRecord, Manifest, ManifestHead, PlanDocument, verify
from tide_cache.manifest.finishing import is_in_parts, make_document
from tide_cache.manifest.parts import PARTS_FOLDER, Part, part_bytes, part_name
from tide_cache.shards import PARTS_VERSION, canonical_json, files_of


@pytest.fixture
def parted(builder, monkeypatch):
    """The example cache, in parts of two shards; three shards make two parts."""
    monkeypatch.setattr("tide_cache.manifest.finishing.MOST_SHARDS_IN_ONE_FILE", 2)
    monkeypatch.setattr("tide_cache.manifest.parts.RECORDS_PER_PART", 2)
    builder.finish()
    return builder


def parts_of(builder, table):
    return sorted((builder.root / PARTS_FOLDER).glob(f"{table}-*"))


def test_readers_see_the_same_cache_as_in_one_file(parted, tmp_path, monkeypatch):
    found = Manifest.load(parted.root)
    monkeypatch.undo()
    other = Builder(tmp_path / "whole")
    whole = other.finish()
    assert (found.identity, found.plan, found.num_samples) == (whole.identity, whole.plan, whole.num_samples)
    assert (found.totals, found.shard_bytes, found.passes) == (whole.totals, whole.shard_bytes, whole.passes)
    assert {table: tuple(records) for table, records in found.shards.items()} == whole.shards
    assert found.shards["plain"][-1] == whole.shards["plain"][-1]
    assert found.shards["pairs"][1:] == list(whole.shards["pairs"][1:])
    for shard in (2, 0):
        _, pairs, records = make_shard(shard, len(PLAN.rows_of(shard)), IDENTITY.shard_rules)
        assert_pairs_equal(found.reader(parted.root, "pairs", shard).read_pairs(0), pairs)
        for view, expected in enumerate(records):
            assert_records_equal(
                found.reader(parted.root, "plain", shard).read_signals(view, 0, pairs), expected, "float16"
            )
    assert verify(parted.root, deep=True).ok
    assert pickle.loads(pickle.dumps(found)) == found
    documents = {name: data for name, data in parted.tree().items() if not name.startswith(("manifest", "plan"))}
    assert documents == {n: data for n, data in other.tree().items() if not n.startswith(("manifest", "plan"))}


def test_a_part_is_the_records_of_its_shards_end_to_end_and_is_named_by_its_hash(parted):
    head = json.loads((parted.root / "manifest.json").read_bytes())
    assert (head["format_version"], head["identity"]["format_version"]) == (PARTS_VERSION, 1)
    assert json.loads((parted.root / "plan.json").read_bytes())["format_version"] == 1
    for number, shards in enumerate(([0, 1], [2])):
        entry = head["parts"]["plain"][number]
        data = (parted.root / PARTS_FOLDER / part_name("plain", number, entry["sha256"])).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
        records = [parted.root / f"signals/plain/shard-{shard:06d}.json" for shard in shards]
        assert data == b"".join(path.read_bytes() for path in records)


def test_a_repeated_build_changes_nothing_and_an_added_pass_leaves_the_parts(parted):
    before = parted.tree()
    parted.finish()
    assert parted.tree() == before
    parted.passes = ("plain", "compdemo")
    assert parted.finish().passes == Manifest.load(parted.root).passes == ("plain", "compdemo")
    after = parted.tree()
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert verify(parted.root).ok


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "link"])
def test_a_damaged_part_is_named_and_written_anew(parted, flip, damage, tmp_path):
    good, (first, second) = parted.tree(), parts_of(parted, "plain")
    if damage == "flipped":
        flip(second, 100)
    elif damage == "short":
        second.write_bytes(second.read_bytes()[:-1])
    else:
        second.rename(tmp_path / "elsewhere")
        if damage == "link":
            second.symlink_to(tmp_path / "elsewhere")
    manifest = Manifest.load(parted.root)
    _, pairs, _ = make_shard(1, 4, IDENTITY.shard_rules)
    assert manifest.reader(parted.root, "plain", 1).read_signals(0, 0, pairs)
    with pytest.raises(ShardCorruptError, match=rf"{second.name}: (found|cannot be read).*\n.*written anew"):
        manifest.reader(parted.root, "plain", 2)
    (problem,) = verify(parted.root).problems
    assert problem.file == f"{PARTS_FOLDER}/{second.name}"
    if damage == "link":
        second.unlink()
    parted.finish()
    assert parted.tree() == good
    assert first.is_file()


def test_a_folder_of_parts_that_leads_out_of_the_cache_is_refused(parted, tmp_path):
    (parted.root / PARTS_FOLDER).rename(tmp_path / "elsewhere")
    (parted.root / PARTS_FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheMismatchError, match="manifest: is a symbolic link; a cache ends at its own folder"):
        Manifest.load(parted.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["parts"].pop("plain"), r"found tables \['pairs'\], expected pairs and one of plain"),
        (lambda d: d["parts"]["plain"].pop(), "plain: found 1 parts, expected 2"),
        (lambda d: d["num_samples"].pop(), "found samples of 2 shards, the plan says 3"),
        (lambda d: d["num_samples"].__setitem__(0, 5), "found 5 samples in a shard, the plan allows 4"),
        (lambda d: d["num_samples"].__setitem__(0, -1), "num_samples.0: Input should be greater"),
        (lambda d: d.update(records_per_part=10**9), "records_per_part: Input should be less"),
        (lambda d: d["totals"].pop("plain"), r"found totals of \['pairs'\]"),
        (lambda d: d["parts"]["plain"][0].update(sha256="../x"), "parts.plain.0.sha256: String should match"),
        (lambda d: d["parts"].update({"../x": []}), r"parts\.\.\./x"),
        (lambda d: d.update(shards={}), "shards: Extra inputs are not permitted"),
        (lambda d: d["identity"].update(format_version=7), "found 7, expected at most 6"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(parted, change, message):
    path = parted.root / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ShardCorruptError, match=message):
        Manifest.load(parted.root)
    assert [problem.file for problem in verify(parted.root).problems] == ["manifest.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records.reverse(), "the entry of plain shard 0 belongs to another cache, plan or shard"),
        (lambda records: records.pop(), "found 1 records, expected 2"),
        (lambda records: records[1].update(num_rows=9, checksum=None), "shard 1: : Value error, row groups of 8"),
        (lambda records: records[1].update(num_samples=3, checksum=None), "found 2 row groups, not those of 3 samples"),
        (lambda records: records[0].update(shard="0"), "shard 0: shard: Input should be a valid integer"),
    ],
)
def test_a_part_that_does_not_belong_is_refused_though_its_hash_is_right(parted, change, message):
    """Hashes do not help against one who can compute them."""
    (path, _), head_path = parts_of(parted, "plain"), parted.root / "manifest.json"
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(records)
    data = b"".join(canonical_json(record) + b"\n" for record in records)
    head = json.loads(head_path.read_bytes())
    head["parts"]["plain"][0] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    head_path.write_text(json.dumps(head))
    (path.parent / part_name("plain", 0, head["parts"]["plain"][0]["sha256"])).write_bytes(data)
    with pytest.raises(ShardCorruptError, match=message):
        Manifest.load(parted.root).reader(parted.root, "plain", 0)


def test_totals_that_are_not_the_sums_are_found_when_all_parts_are_read(parted):
    path = parted.root / "manifest.json"
    document = json.loads(path.read_bytes())
    document["totals"]["pairs"]["samples"] += 1
    path.write_text(json.dumps(document))
    (problem,) = verify(parted.root).problems
    assert (problem.file, problem.problem[:16]) == ("manifest.json", "pairs: totals ar")


def test_few_shards_stay_in_one_file_and_the_choice_does_not_depend_on_passes():
    def is_parted(num_shards, samples_per_shard=512, num_views=8):
        plan = PLAN.model_copy(
            update={"num_rows": num_shards * samples_per_shard, "samples_per_shard": samples_per_shard}
        )
        views = IDENTITY.views.model_copy(update={"num_views": num_views})
        identity = IDENTITY.model_copy(update={"num_rows": plan.num_rows, "views": views})
        return is_in_parts(PlanDocument.of(identity, plan))

    assert not is_parted(4096)
    assert is_parted(4097)
    assert is_parted(300, samples_per_shard=200_000), "few, but each record lists 25,000 row groups"


def test_a_hundred_thousand_shards_open_without_reading_a_part(tmp_path):
    """Records alone; of the parts only the first of each table exists, and only its shards can be read."""
    plan = PLAN.model_copy(update={"num_rows": 400_000})
    identity = IDENTITY.model_copy(update={"num_rows": plan.num_rows})
    folder = CacheFolder(tmp_path / "cache")
    folder.begin(identity, plan, ["plain"])
    (folder.root / PARTS_FOLDER).mkdir()
    parts = {}
    for table, rows in (("pairs", (4,)), ("plain", (4, 4))):
        record = CommitRecord(
            cache_id=identity.cache_id, plan_hash=plan.plan_hash(identity.cache_id), table=table, shard=0, size=1000,
            sha256="a" * 64, footer_sha256="b" * 64, num_samples=4, num_rows=sum(rows), row_groups=rows, statistics={},
        )  # fmt: skip
        data = part_bytes([record.model_copy(update={"shard": shard}) for shard in range(1024)])
        part = Part(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        (folder.root / PARTS_FOLDER / part_name(table, 0, part.sha256)).write_bytes(data)
        parts[table] = (part, *[Part(size=len(data), sha256="c" * 64)] * 97)
    head = ManifestHead(
        tide_cache_version="", identity=identity, plan=plan, complete=True, num_samples=(4,) * 100_000,
        records_per_part=1024, parts=parts, shard_bytes=dict.fromkeys(parts, 10**8), totals={t: {} for t in parts},
    )  # fmt: skip
    (folder.root / "manifest.json").write_bytes(canonical_json(head.model_dump(mode="json")))
    started_s = time.process_time()
    manifest = Manifest.load(folder.root)
    assert time.process_time() - started_s < 2
    assert len(manifest.shards["pairs"]) == len(manifest.num_samples) == 100_000
    assert manifest.reader(folder.root, "plain", 1023).layout.num_row_groups == 2
    with pytest.raises(ShardCorruptError, match=r"plain-000001-.*found no file"):
        manifest.reader(folder.root, "plain", 1024)


@pytest.mark.parametrize("most", [2, 4096])
def test_records_of_a_store_are_asked_for_together(builder, monkeypatch, most):
    """One after the other, 200,000 of them would take a quarter of an hour to answer."""
    monkeypatch.setattr("tide_cache.manifest.finishing.MOST_SHARDS_IN_ONE_FILE", most)
    manifest = builder.finish()
    document = CacheFolder(builder.root).plan_document
    both_asked = threading.Barrier(2, timeout=30)

    def record_of(table, shard):
        if shard < 2:
            both_asked.wait()
        return manifest.shards[table][shard]

    root = RemotePath("memory://finish/cache")
    made = make_document(root, document, manifest.tables, record_of, files_of(root))
    assert made.totals == manifest.totals
