"""A name in a run file is a folder here or a name on a hub; what can be neither is refused without asking a server."""

from pathlib import Path


def nowhere(location: str) -> str | None:
    """Say why a location is neither a folder nor a hub name, or give None.

    A hub name has the form owner/name; names of one word, which the hub once had, are taken for misspelt folders.
    """
    if Path(location).is_dir():
        return None
    owner, slash, name = location.partition("/")
    is_hub_name = bool(slash and owner and name) and "/" not in name and owner not in {".", "..", "~"}
    return (
        None if is_hub_name else f"{location}: found no such folder; expected one, or a hub name of the form owner/name"
    )
