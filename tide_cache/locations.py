"""What the locations of a run file mean: a local folder, a name on a hub or, for caches, a URL of an object store."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from tide_cache.errors import RunFileError
from tide_cache.unreadable import is_folder

HUB = "hf"
"""Protocol of a cache that was published as a data set of a hub: hf://datasets/OWNER/NAME."""
HUB_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
"""Name, revision and path of a file in it."""
READ_ONLY = "a data set of a hub is only read. Build into a folder, then upload that: tide-cache push FOLDER OWNER/NAME"

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LOCAL_URL = re.compile(r"(file|local)://", re.IGNORECASE)


class RemotePath:
    """A folder or file of an object store, by its URL; joined and split like a `Path`."""

    __slots__ = ("url",)

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self.url = f"{scheme.lower()}://{rest.rstrip('/')}"

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}" if not self.url.endswith("://") else f"{self.url}{name}")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemotePath({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def protocol(self) -> str:
        """The part before `://`."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """Last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return RemotePath(self.url.rpartition("/")[0])

    def with_suffix(self, suffix: str) -> "RemotePath":
        """Return the path with another file name extension."""
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def relative_to(self, root: "RemotePath") -> PurePosixPath:
        """Return the part below a folder."""
        assert self.url.startswith(f"{root.url}/"), f"{self} is not in {root}"
        return PurePosixPath(self.url.removeprefix(f"{root.url}/"))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(
            cls, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )


CachePath = Path | RemotePath
"""Location of a cache, or of one of its files."""


def is_url(location: str) -> bool:
    """Return whether a location is a URL of an object store; `file://` is another way to write a path."""
    return bool(_URL.match(location)) and not _LOCAL_URL.match(location)


def cache_path(location: str) -> CachePath:
    """Read the location of a cache as written in a run file or on the command line.

    Raises:
        RunFileError: It is a URL of a hub, but not of a data set.
    """
    if not is_url(location):
        return Path(_LOCAL_URL.sub("", location, count=1))
    path = RemotePath(location)
    if path.protocol == HUB and not HUB_URL.fullmatch(path.url):
        raise RunFileError(
            f"{location}: expected hf://datasets/OWNER/NAME, with @REVISION or /FOLDER behind it where needed: a hub's "
            "caches are data sets"
        )
    return path


def nowhere(location: str) -> str | None:
    """Return why a location is neither a folder nor a hub name; None if it is one.

    A hub name has the form owner/name; names of one word, which the hub once had, are taken for misspelt folders.
    """
    if is_folder(Path(location)):
        return None
    owner, slash, name = location.partition("/")
    is_hub_name = bool(slash and owner and name) and "/" not in name and owner not in {".", "..", "~"}
    return (
        None if is_hub_name else f"{location}: found no such folder; expected one, or a hub name of the form owner/name"
    )
