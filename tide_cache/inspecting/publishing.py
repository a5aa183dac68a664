"""Models and caches on a hub: which files go there, and what is checked before.

A published cache is opened as `hf://datasets/OWNER/NAME`. Its manifest is uploaded last, so that it is complete there
if and only if it has one, as in a folder.
"""

import json
from pathlib import Path

from tide_cache.errors import CacheMismatchError, ModelError, ShardCorruptError, fault_list
from tide_cache.manifest import CacheIdentity, Manifest, record_path, shard_path, verify
from tide_cache.manifest.parts import RecordParts
from tide_cache.modeling.card import cache_card
from tide_cache.modeling.checkpoint import read_provenance
from tide_cache.upload import Destination, files_below

_MOST_SHOWN = 5


def publish_model(folder: Path, destination: Destination) -> str:
    """Upload a model with its tokenizer and card; the path of its start on this machine is left out.

    Args:
        folder: Of the model.
        destination: Claimed before.

    Returns:
        Address of the commit.

    Raises:
        ModelError: The folder holds no model.
        UploadError: The hub does not take it.
    """
    files: dict[str, Path | bytes] = {**files_below(folder)}
    if "config.json" not in files:
        raise ModelError(f"{folder}: found no config.json; expected the folder of a model")
    if "tide_cache.json" in files:
        files["tide_cache.json"] = _without_paths(read_provenance(folder))
    return destination.send(files, f"Upload {folder.name} with tide-cache")


def _without_paths(provenance: dict[str, object]) -> bytes:
    run = provenance.get("run")
    if isinstance(run, dict) and Path(str(run.get("student.model"))).is_absolute():
        provenance = {**provenance, "run": {**run, "student.model": Path(run["student.model"]).name}}
    return json.dumps(provenance, indent=2, sort_keys=True).encode() + b"\n"


def publish_cache(root: Path, destination: Destination) -> str:
    """Upload a complete cache with a card; what a run file says of this machine (build.json) stays here.

    Args:
        root: Folder of the cache.
        destination: Claimed before.

    Returns:
        Address of the last commit.

    Raises:
        CacheIncompleteError: The build has not finished.
        ShardCorruptError: A file is damaged; names the first ones.
        CacheMismatchError: The repository holds another cache.
        UploadError: The hub does not take it.
    """
    manifest = Manifest.load(root)
    if problems := verify(root).problems:
        lines = [f"{problem.file}: {problem.problem}" for problem in problems[:_MOST_SHOWN]]
        way_out = f"Nothing was uploaded. Repair it: tide-cache repair {root}"
        raise ShardCorruptError(fault_list(f"{root} is damaged:", lines, way_out))
    _require_same_cache(manifest, destination)
    files: dict[str, Path | bytes] = {"plan.json": root / "plan.json"}
    for table in manifest.tables:
        for shard in range(manifest.plan.num_shards):
            for path in (shard_path(root, table, shard), record_path(root, table, shard)):
                files[path.relative_to(root).as_posix()] = path
    for parts in manifest.shards.values():
        if isinstance(parts, RecordParts):
            for number in range(parts.num_parts):
                part = Path(str(parts.path(number)))
                files[part.relative_to(root).as_posix()] = part
    cache_id, identity = manifest.identity.cache_id, manifest.identity.model_dump(mode="json")
    card = cache_card(identity, manifest.totals, cache_id, destination.name, manifest.tide_cache_version)
    files["README.md"] = card.encode()
    files["manifest.json"] = root / "manifest.json"
    return destination.send(files, f"Upload cache {cache_id} with tide-cache", last=("README.md", "manifest.json"))


def _require_same_cache(manifest: Manifest, destination: Destination) -> None:
    """Refuse a repository whose shards are those of another cache: they would lie among these."""
    if (held := destination.held("manifest.json")) is None:
        return
    try:
        found = CacheIdentity.model_validate(json.loads(held)["identity"]).cache_id
    except (ValueError, KeyError, TypeError):
        found = None
    if found != manifest.identity.cache_id:
        what = f"cache {found}" if found else "a manifest.json that is no cache's"
        raise CacheMismatchError(
            f"{destination.page}: holds {what}, and this is cache {manifest.identity.cache_id}; give another name"
        )
