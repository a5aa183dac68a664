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
from tide_cache.manifest.plan import PlanDocument, ShardPlan
from tide_cache.manifest.verify import Problem, VerifyReport, verify

__all__ = [
    "CacheFolder",
    "CacheIdentity",
    "CommitRecord",
    "Manifest",
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
    "record_path",
    "require_same_identity",
    "shard_path",
    "tables_of",
    "verify",
]
