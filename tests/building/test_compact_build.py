"""A run file with the codec `compact` builds a cache of the same records, and inspection reads it as any other."""

import numpy as np

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.inspecting.inspection import inspect
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest, verify


def test_a_compact_build_has_the_same_records(tmp_path, build_values):
    kinds = ("truth", "topk", "chunks")
    records, manifests = {}, {}
    for codec in ("plain", "compact"):
        values = build_values(tmp_path / codec, signals__codec=codec, signals__kinds=kinds, signals__tail_samples=4)
        build_cache(BuildRun.model_validate(values))
        manifests[codec] = Manifest.load(tmp_path / codec)
        source = CacheSource(tmp_path / codec, manifests[codec])
        records[codec] = source.records(range(source.groups.num_samples), epoch=1)
        assert verify(tmp_path / codec, deep=True).ok
    assert manifests["plain"].identity.differences(manifests["compact"].identity) == [
        ("signals.codec", "plain", "compact")
    ]
    for one, other in zip(records["plain"], records["compact"], strict=True):
        for part in ("topk", "chunks"):
            left, right = vars(getattr(one.signal, part)), vars(getattr(other.signal, part))
            tails = [vars(side.pop("tail")) for side in (left, right) if "tail" in side]
            for mine, theirs in ((left, right), *([tails] if tails else [])):
                assert mine.keys() == theirs.keys()
                assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert "topk_logprobs_low" in inspect(tmp_path / "compact").column_bytes["plain"]
