"""What a cache is and whether it is whole."""

from tide_cache.manifest.commit import CommitRecord, Statistics
from tide_cache.manifest.folder import CacheFolder
from tide_cache.manifest.identity import (
    CacheIdentity,
    PairingIdentity,
    SignalsIdentity,
    StudentIdentity,
    ViewsIdentity,
    VocabSizes,
    require_same_identity,
)
from tide_cache.manifest.manifest import Manifest, record_path, shard_path, tables_of
from tide_cache.manifest.parts import ManifestHead
from tide_cache.manifest.plan import PlanDocument, ShardPlan
from tide_cache.manifest.shard_check import Problem
from tide_cache.manifest.verify import VerifyReport, verify
from tide_cache.manifest.whole import WholeManifest

__all__ = [
    "CacheFolder",
    "CacheIdentity",
    "CommitRecord",
    "Manifest",
    "ManifestHead",
    "PairingIdentity",
    "PlanDocument",
    "Problem",
    "ShardPlan",
    "SignalsIdentity",
    "Statistics",
    "StudentIdentity",
    "VerifyReport",
    "ViewsIdentity",
    "VocabSizes",
    "WholeManifest",
    "record_path",
    "require_same_identity",
    "shard_path",
    "tables_of",
    "verify",
]
