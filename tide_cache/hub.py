"""Checkpoints and tokenizers of a hub: the small files at one commit first, the weights once all else is checked.

The local cache of `huggingface_hub` is used as usual; without a network nothing else is read.
Every refusal keeps its reason: a revision, a licence, a name, a network.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from tide_cache.errors import ModelError, TideCacheError, UnreadableError
from tide_cache.locations import nowhere
from tide_cache.progress import doing
from tide_cache.unreadable import chain_of, fault_of_the_machine, is_file, is_folder, names_in

SMALL_FILES = (
    "config.json", "adapter_config.json", "tide_cache.json", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Files that are read from a repository, besides weights."""

ANSWER_WITHIN_S = 6.0
"""Seconds to wait for a hub before falling back to local files."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 5


@dataclass(frozen=True)
class Repository:
    """A folder, or the files fetched so far from a hub's repository.

    Attributes:
        location: As given.
        folder: Where its files are.
        commit: Which one they are of, 40 hex digits; None for a folder.
    """

    location: str
    folder: Path
    commit: str | None = None

    def fetch(self, names: Sequence[str], error: type[TideCacheError] = ModelError) -> None:
        """Fetch files from a hub's repository, except those that it does not have.

        Args:
            names: Which.
            error: What to raise.

        Raises:
            TideCacheError: The hub does not serve them; says why.
        """
        if self.commit is not None and not all(is_file(self.folder / name) for name in names):
            with doing(f"Fetching {', '.join(names[:_SHOWN])} of {self.location}"):
                _fetch(self.location, self.commit, names, error)

    def names(self) -> list[str]:
        """List the files: those of the hub's repository or, if it cannot be reached, the local ones."""
        if self.commit is not None:
            try:
                return sorted(HfApi().list_repo_files(self.location, revision=self.commit))
            except (OSError, ValueError):
                pass
        return names_in(self.folder)

    def stated_sha256(self, names: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of large files as the hub states them, without fetching anything; empty where it does not.

        Args:
            names: Of the files.
        """
        stated = {file.path: getattr(file, "lfs", None) for file in self._stated(names)}
        return {path: lfs.sha256 for path, lfs in stated.items() if lfs is not None}

    def stated_bytes(self, names: Sequence[str]) -> int:
        """Return the size of files as the hub states it, without fetching anything; 0 where it does not.

        Args:
            names: Of the files.
        """
        return sum(int(getattr(file, "size", None) or 0) for file in self._stated(names))

    def _stated(self, names: Sequence[str]) -> Sequence[Any]:
        if self.commit is None:
            return ()
        try:
            return HfApi().get_paths_info(self.location, list(names), revision=self.commit)
        except (OSError, ValueError):
            return ()


def open_repository(location: str, revision: str | None = None, error: type[TideCacheError] = ModelError) -> Repository:
    """Find a folder, or fetch the small files of a hub's repository; no weights.

    Args:
        location: Folder, or hub name of the form owner/name.
        revision: Branch, tag or commit of a hub's repository.
        error: What to raise.

    Raises:
        TideCacheError: There is no such folder, and the hub does not serve it; says why.
        UnreadableError: The folder, or what is kept here of the hub, cannot be read now.
    """
    if is_folder(Path(location)):
        return Repository(location, Path(location))
    if reason := nowhere(location):
        raise error(reason)
    with doing(f"Asking the hub for {location}"):
        folder = _fetch(location, revision, SMALL_FILES, error)
    if not _COMMIT.fullmatch(folder.name):
        raise error(
            f"{location}: read from {folder}, whose name is no commit of 40 hex digits; give its revision, or a local "
            "folder"
        )
    return Repository(location, folder, folder.name)


def ask_for_dataset(name: str) -> Exception | None:
    """Ask the hub for a data set and return what is wrong with it, if anything; give up soon if it does not answer.

    Args:
        name: Of the form owner/name.
    """
    try:
        HfApi().repo_info(name, repo_type="dataset", timeout=ANSWER_WITHIN_S)
    except Exception as found:  # of huggingface_hub and its HTTP library
        return found
    return None


@contextlib.contextmanager
def unasked_hub() -> Iterator[None]:
    """Make libraries use local files instead of a hub, which would keep them waiting for minutes."""
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep `huggingface_hub` from drawing a bar for each of many files; its weights keep theirs."""
    was_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_off:
            enable_progress_bars()


def is_told_by_hub(error: Exception) -> bool:
    """Return whether a hub's refusal, or not asking it, led to an error."""
    chain = list(chain_of(error))
    return any(isinstance(one, HfHubHTTPError | OfflineModeIsEnabled) or _is_gated(one) for one in chain)


def _is_gated(error: BaseException) -> bool:
    """Return whether access has to be requested; `datasets` keeps the text and drops the error."""
    return isinstance(error, GatedRepoError) or "is a gated dataset on the Hub" in str(error)


def _fetch(location: str, revision: str | None, names: Sequence[str], error: type[TideCacheError]) -> Path:
    """Fetch files at the commit that a revision stands for; give up soon if the hub does not answer."""
    patterns = list(names)
    try:
        # `snapshot_download` asks the same without a limit, and would wait for a silent hub for minutes.
        commit = HfApi().repo_info(location, revision=revision, timeout=ANSWER_WITHIN_S).sha
    except RevisionNotFoundError as found:
        raise error(refusal(location, revision, found)) from None
    except Exception as found:  # of huggingface_hub and its HTTP library: some are OSErrors, some are not
        try:
            return Path(snapshot_download(location, revision=revision, allow_patterns=patterns, local_files_only=True))
        except Exception as kept:
            require_usable_cache(kept)
            raise error(refusal(location, revision, found)) from None
    try:
        folder = Path(snapshot_download(location, revision=commit, allow_patterns=patterns))
        note_commit(location, revision, str(commit))
        return folder
    except Exception as found:
        require_usable_cache(found)
        raise error(refusal(location, revision, found)) from None


def require_usable_cache(error: Exception) -> None:
    """Raise the error for a local folder that cannot be read or written; other errors are the hub's.

    Args:
        error: What `huggingface_hub` raised; of the rest nothing is said here.

    Raises:
        UnreadableError: It is about such a folder.
    """
    fault = fault_of_the_machine(error)
    if fault is not None and fault.filename is not None:
        raise UnreadableError(
            f"{fault.filename}: cannot be read or written now: {os.strerror(fault.errno or 0)} (errno {fault.errno}); "
            "files fetched from the hub are kept there. Fix that, or set HF_HOME to your own folder"
        ) from error


def note_commit(location: str, revision: str | None, commit: str, kind: str = "models") -> None:
    """Record what a branch stood for, as `snapshot_download` does, so that its name works without a network.

    Args:
        location: Name of a repository.
        revision: As given.
        commit: What the hub said it is.
        kind: `models` or `datasets`.
    """
    branch = revision or constants.DEFAULT_REVISION
    if branch != commit:
        refs = Path(constants.HF_HUB_CACHE, f"{kind}--" + location.replace("/", "--"), "refs")
        with contextlib.suppress(OSError):
            (refs / branch).parent.mkdir(parents=True, exist_ok=True)
            (refs / branch).write_text(commit)


def refusal(location: str, revision: str | None, error: Exception, kind: str = "", may_be_folder: bool = True) -> str:
    """Return why the hub does not serve a repository, and what helps.

    Args:
        location: Its name.
        revision: As given.
        error: What `huggingface_hub` raised.
        kind: `datasets/` for a data set.
        may_be_folder: The location could have been that of a folder.
    """
    no_folder = "no such folder, and " if may_be_folder else ""
    page = f"{constants.ENDPOINT}/{kind}{location}"
    log_in = "set HF_TOKEN, or run `hf auth login`"
    chain = list(chain_of(error))
    if any(isinstance(one, RevisionNotFoundError) for one in chain):
        return (
            f"{location}: the hub has no revision {revision!r} of it; expected a branch, a tag, or a commit of 40 hex "
            f"digits: {page}/commits/main lists them"
        )
    if any(_is_gated(one) for one in chain):
        return f"{location}: is gated: accept its conditions at {page}, then {log_in}"
    if any(isinstance(one, RepositoryNotFoundError) for one in chain):
        return (
            f"{location}: {no_folder}the hub has no such repository, or keeps it private; check the name, or {log_in}"
        )
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return (
            f"{location}: {no_folder}the hub is not asked, since HF_HUB_OFFLINE is set; "
            f"{constants.HF_HUB_CACHE} does not hold all its files. Fetch it on a machine with a network (`hf "
            "download`) and copy that folder, or give a local one"
        )
    status = next((one.response.status_code for one in chain if isinstance(one, HfHubHTTPError)), None)
    if status in (401, 403):
        return f"{location}: the hub refuses it (HTTP {status}); {log_in} with a token that may read {page}"
    reason = next((" ".join(str(one).split())[:200] for one in reversed(chain) if str(one)), type(error).__name__)
    asked = "cannot be reached" if status is None else f"answers with HTTP {status}"
    if isinstance(error, LocalEntryNotFoundError) or status is not None or not isinstance(error, OSError | ValueError):
        return (
            f"{location}: {no_folder}the hub at {constants.ENDPOINT} {asked} ({reason}); try again, or give a "
            "local folder"
        )
    return (
        f"{location}: cannot be fetched from the hub: {reason}; check the name and the room in {constants.HF_HUB_CACHE}"
    )
