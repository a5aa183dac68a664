"""A cache that was published as a data set of a hub: `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`, only read.

The data set is read as it is at one commit, whatever is uploaded meanwhile. A file is fetched whole when it is first
read, into the local cache of `huggingface_hub`: all processes of a machine find it there, and later runs need no hub.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from tide_cache.errors import CacheIncompleteError, RunFileError, UnreadableError
from tide_cache.hub import ANSWER_WITHIN_S, note_commit, refusal, require_usable_cache, without_bars
from tide_cache.locations import HUB_URL, READ_ONLY, CachePath
from tide_cache.progress import doing
from tide_cache.shards.files import LOCAL_FILES


@dataclass(frozen=True)
class HubDataset:
    """A data set of a hub at one commit.

    Attributes:
        name: Of the form owner/name.
        commit: 40 hex digits.
        sizes: Bytes of its files by path; without the hub, of those that were fetched before.
        unasked: Why the hub was not asked, empty if it was.
    """

    name: str
    commit: str
    sizes: Mapping[str, int]
    unasked: str = ""


class HubFiles:
    """Files of published caches by URL."""

    def size(self, path: CachePath) -> int:
        """Bytes of a file."""
        dataset, name = _find(path)
        if name not in dataset.sizes:
            _raise_missing(path, dataset)
        return dataset.sizes[name]

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Read a byte range; shorter only where the file ends."""
        dataset, name = _find(path)
        if name not in dataset.sizes:
            _raise_missing(path, dataset)
        return LOCAL_FILES.read(_fetched(dataset.name, dataset.commit, name), start, size)

    def list_folder(self, folder: CachePath) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""
        dataset, name = _find(folder)
        start = f"{name}/" if name else ""
        return sorted({path[len(start) :].partition("/")[0] for path in dataset.sizes if path.startswith(start)})

    def create(self, path: CachePath, data: bytes) -> None:
        """Refuse."""
        _refuse(path)

    def replace(self, path: CachePath, data: bytes) -> None:
        """Refuse."""
        _refuse(path)

    def remove(self, path: CachePath) -> None:
        """Refuse."""
        _refuse(path)

    def make_folder(self, folder: CachePath) -> None:
        """Refuse."""
        _refuse(folder)

    def sync_folder(self, folder: CachePath) -> None:
        """Refuse."""
        _refuse(folder)

    def remove_leftovers(self, folder: CachePath) -> None:
        """Refuse."""
        _refuse(folder)

    def prove_exclusive(self, path: CachePath) -> None:
        """Refuse."""
        _refuse(path)


HUB_FILES = HubFiles()


def _find(path: CachePath) -> tuple[HubDataset, str]:
    """Return the data set of a URL, and the path in it."""
    match = HUB_URL.fullmatch(str(path))
    assert match is not None, path
    name, revision, below = match.groups()
    return _opened(name, None if revision is None else unquote(revision)), below or ""


@cache
def _opened(name: str, revision: str | None) -> HubDataset:
    """Ask the hub once which commit a revision is and what it holds; a process keeps the answer."""
    api = HfApi()
    with doing(f"Asking the hub for {name}"):
        try:
            info = api.repo_info(name, repo_type="dataset", revision=revision, timeout=ANSWER_WITHIN_S)
            commit = str(info.sha)
            tree = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
            sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            kind = UnreadableError if isinstance(error, GatedRepoError) else CacheIncompleteError
            raise kind(_refusal(name, revision, error)) from None
        except Exception as error:  # of huggingface_hub and its HTTP library
            return _kept(name, revision, error)
    note_commit(name, revision, commit, "datasets")
    return HubDataset(name, commit, sizes)


def _kept(name: str, revision: str | None, error: Exception) -> HubDataset:
    """Return what was fetched before of a data set that the hub does not give now."""
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception as kept:
        require_usable_cache(kept)
        raise UnreadableError(_refusal(name, revision, error)) from None
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return HubDataset(name, folder.name, sizes, _refusal(name, revision, error))


@cache
def _fetched(name: str, commit: str, path: str) -> Path:
    """Fetch a file, unless it was fetched before."""
    with doing(f"Fetching {path} of {name}"), without_bars():
        try:
            return Path(HfApi().hf_hub_download(name, path, repo_type="dataset", revision=commit)).resolve()
        except Exception as error:
            require_usable_cache(error)
            raise UnreadableError(_refusal(name, commit, error)) from None


def _raise_missing(path: CachePath, dataset: HubDataset) -> NoReturn:
    if dataset.unasked:
        raise UnreadableError(f"{path}: was not fetched before. {dataset.unasked}")
    raise FileNotFoundError(errno.ENOENT, "No such file in the data set", str(path))


def _refusal(name: str, revision: str | None, error: Exception) -> str:
    return f"hf://datasets/{refusal(name, revision, error, 'datasets/', may_be_folder=False)}"


def _refuse(path: CachePath) -> NoReturn:
    raise RunFileError(f"{path}: {READ_ONLY}")
