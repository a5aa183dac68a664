"""A compact cache: another identity, the same records; nothing above the shard reader knows."""

from helpers.cache_examples import IDENTITY, PLAN
from helpers.shard_examples import assert_records_equal, encode_both
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import CacheFolder, CacheIdentity, verify

COMPACT = IDENTITY.model_copy(update={"signals": IDENTITY.signals.model_copy(update={"codec": "compact"})})


def test_the_codec_is_named_though_the_default_is_not_written():
    assert COMPACT.cache_id != IDENTITY.cache_id
    assert "codec" not in IDENTITY.model_dump(mode="json")["signals"]
    assert COMPACT.model_dump(mode="json")["signals"]["codec"] == "compact"
    assert IDENTITY.differences(COMPACT) == [("signals.codec", "plain", "compact")]
    assert CacheIdentity.model_validate_json(COMPACT.model_dump_json(), strict=True) == COMPACT


def test_a_compact_cache_is_read_and_verified_like_a_plain_one(tmp_path):
    records = []
    for identity in (IDENTITY, COMPACT):
        folder = CacheFolder(tmp_path / identity.signals.codec)
        folder.begin(identity, PLAN, ["plain"])
        for shard in range(PLAN.num_shards):
            header = folder.header("pairs", shard)
            for encoded in encode_both(shard, len(PLAN.rows_of(shard)), identity.shard_rules, header):
                folder.commit(encoded, {"samples": encoded.num_samples})
        manifest = folder.finish(["plain"])
        report = verify(folder.root, deep=True)
        assert report.ok, report.problems
        assert ("topk_ids_low" in manifest.shards["plain"][0].statistics.__repr__()) == (identity is COMPACT)
        records.append(CacheSource(folder.root, manifest).records(range(PLAN.num_rows), epoch=1))
    assert_records_equal(records[1], records[0], "float16")
