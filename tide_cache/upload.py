"""Uploads to a hub: refused before any work where they cannot succeed, and never at the price of what was made.

Names, tokens and endpoints are those of `huggingface_hub`: `hf auth login`, HF_TOKEN, HF_ENDPOINT.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from tide_cache.errors import RunFileError, UploadError
from tide_cache.hub import ANSWER_WITHIN_S, without_bars
from tide_cache.progress import doing
from tide_cache.unreadable import chain_of

Kind = Literal["model", "dataset"]

FILES_PER_COMMIT = 500
"""A commit of many thousand files takes a hub longer than it lets a request last."""

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REFUSED = {401, 403}
_WEIGHTS = re.compile(r"(model|pytorch_model)[^/]*\.(safetensors|bin)(\.index\.json)?")
_LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class Destination:
    """A repository of a hub that files go to.

    Attributes:
        name: Of the form owner/name.
        kind: `model` or `dataset`.
        is_private: Whether it is to be private.
        option: What the user wrote before the name, for messages.
    """

    name: str
    kind: Kind = "model"
    is_private: bool = False
    option: str = "--push-to-hub"

    @property
    def page(self) -> str:
        """Its address."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def require_usable(self) -> None:
        """Refuse a name that no repository can have, and a machine without a token; the hub is not asked.

        Raises:
            RunFileError: Lists neither the token nor where it was looked for.
        """
        where = f"{self.option} {self.name}"
        try:
            if not _NAME.fullmatch(self.name):
                raise HFValidationError("a name has an owner")
            validate_repo_id(self.name)
        except HFValidationError:
            raise RunFileError(
                f"{where}: expected OWNER/NAME, of letters, digits, '-', '_' and '.', such as me/student"
            ) from None
        if constants.HF_HUB_OFFLINE:
            raise RunFileError(
                f"{where}: HF_HUB_OFFLINE is set, so that the hub is not asked; unset it, or leave it out"
            )
        if not get_token():
            raise RunFileError(f"{where}: found no token of the hub; {_LOG_IN}")

    def claim(self) -> None:
        """Create the repository, or find that it is there, and that this token may write to it.

        Raises:
            RunFileError: The hub refuses the name or the token, or the repository is public and should be private.
            UploadError: The hub cannot be reached.
        """
        self.require_usable()
        api = HfApi()
        with doing(f"Asking the hub for {self.name}"), self._told(RunFileError):
            try:
                found = api.repo_info(self.name, repo_type=self.kind, timeout=ANSWER_WITHIN_S)
            except RepositoryNotFoundError:
                api.create_repo(self.name, repo_type=self.kind, private=self.is_private, exist_ok=True)
            else:
                if self.is_private and not found.private:
                    raise RunFileError(
                        f"{self.option} {self.name}: is public on the hub, and --private does not change that; make it "
                        f"private at {self.page}/settings, or choose another name"
                    )
            self._require_right(api)

    def _require_right(self, api: HfApi) -> None:
        try:
            api.auth_check(self.name, repo_type=self.kind, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code in _REFUSED:
                raise  # other answers come from hubs that do not know the question

    def held(self, path: str) -> bytes | None:
        """Return a file that is there already; None if there is none.

        Args:
            path: In the repository.

        Raises:
            UploadError: The hub does not answer.
        """
        api = HfApi()
        with self._told(UploadError):
            if not api.file_exists(self.name, path, repo_type=self.kind):
                return None
            return Path(api.hf_hub_download(self.name, path, repo_type=self.kind)).read_bytes()

    def send(self, files: Mapping[str, Path | bytes], message: str, last: Sequence[str] = ()) -> str:
        """Upload files, replacing those of the same name; weights of a model that was there before are removed.

        Args:
            files: Where they are, or their bytes, by their path in the repository.
            message: Of the commit.
            last: Paths that are committed after all others.

        Returns:
            Address of the last commit.

        Raises:
            UploadError: The hub does not take them. What it has taken stays; the same call sends the rest.
        """
        api, address = HfApi(), ""
        with self._told(UploadError):
            there = api.list_repo_files(self.name, repo_type=self.kind) if self.kind == "model" else []
            old = [path for path in there if _WEIGHTS.fullmatch(path) and path not in files]
            with doing(f"Uploading {len(files)} files to {self.page}"), without_bars():
                for part in _parts(files, last):
                    added = [CommitOperationAdd(path, str(files[path])) if isinstance(files[path], Path) else
                             CommitOperationAdd(path, files[path]) for path in part]  # fmt: skip
                    removed = [CommitOperationDelete(path) for path in old]
                    address = api.create_commit(
                        self.name, [*added, *removed], commit_message=message, repo_type=self.kind
                    ).commit_url
                    old = []
        return address

    @contextmanager
    def _told(self, kind: type[RunFileError | UploadError]) -> Iterator[None]:
        """Turn what `huggingface_hub` and its HTTP library raise into one line with a way out.

        Args:
            kind: What to raise where the hub refuses; other answers, and none, are an UploadError.
        """
        try:
            yield
        except (RunFileError, UploadError):
            raise
        except Exception as error:
            raise self._fault(error, kind) from error

    def _fault(self, error: Exception, kind: type[RunFileError | UploadError]) -> RunFileError | UploadError:
        chain = list(chain_of(error))
        status = next((one.response.status_code for one in chain if isinstance(one, HfHubHTTPError)), None)
        where = f"{self.option} {self.name}"
        if status in _REFUSED:
            return kind(
                f"{where}: the hub refuses to write there (HTTP {status}): the token is wrong, expired, or may not "
                f"write to {self.page}; {_LOG_IN}"
            )
        reason = next((" ".join(str(one).split())[:200] for one in reversed(chain) if str(one)), type(error).__name__)
        answer = "cannot be reached" if status is None else f"answers with HTTP {status}"
        return UploadError(f"{where}: the hub at {constants.ENDPOINT} {answer}: {reason}")


def _parts(files: Mapping[str, object], last: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Cut the paths into commits."""
    paths = (*(path for path in files if path not in last), *last)
    for start in range(0, len(paths), FILES_PER_COMMIT):
        yield paths[start : start + FILES_PER_COMMIT]


def files_below(folder: Path) -> dict[str, Path]:
    """Return all plain files of a folder by their path in it; names that begin with a dot are left out.

    Args:
        folder: Of a model.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder): path for path in paths}
    return {
        name.as_posix(): path for name, path in names.items() if not any(part.startswith(".") for part in name.parts)
    }
