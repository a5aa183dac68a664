"""`tide-cache push`: upload a model or a cache to the hub; what `--push-to-hub` of other commands uses too."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.errors import Interrupted, RunFileError, UploadError
from tide_cache.unreadable import is_file

from .console import chatter_to_stderr, print_json, print_text
from .options import Json, Private

if TYPE_CHECKING:
    from tide_cache.upload import Destination


def push(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A training run, its model, an exported model, or a cache.")
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; created if missing.")],
    private: Private = False,
    json: Json = False,
) -> None:
    """Upload a model or a complete cache to the hub, with its card.

    A cache becomes a data set. Open it as `hf://datasets/OWNER/NAME`.
    """
    folder, is_cache = _what(source)
    with chatter_to_stderr():
        from tide_cache.inspecting.publishing import publish_cache, publish_model
        from tide_cache.upload import Destination

        destination = Destination(name, "dataset" if is_cache else "model", private, option="push")
        destination.claim()
        try:
            address = (publish_cache if is_cache else publish_model)(folder, destination)
        except UploadError as error:
            raise UploadError(f"{error}\nRun the same command again: it sends what is missing.") from error
    if json:
        print_json({"folder": str(folder), "kind": destination.kind, "page": destination.page, "commit": address})
        return
    print_text(f"{folder}: uploaded to {destination.page}")
    if is_cache:
        print_text(f"Open it with: tide-cache inspect hf://datasets/{name}")


def _what(source: Path) -> tuple[Path, bool]:
    """Return the folder to upload, and whether it is a cache.

    Raises:
        RunFileError: It is neither.
    """
    if any(is_file(source / name) for name in ("manifest.json", "plan.json")):
        return source, True
    for folder in (source / "model", source):
        if is_file(folder / "config.json"):
            return folder, False
    raise RunFileError(
        f"{source}: found neither a model (config.json) nor a cache (manifest.json); give the folder of a training "
        "run, of a model or of a cache"
    )


def find_destination(name: str | None, private: bool) -> "Destination | None":
    """Return where `--push-to-hub` leads, None where it is not given; the hub is not asked yet.

    Raises:
        RunFileError: The name or the token cannot be used.
    """
    if name is None:
        if private:
            raise RunFileError("--private: found no --push-to-hub with it; give both, or neither")
        return None
    with chatter_to_stderr():
        from tide_cache.upload import Destination

        destination = Destination(name, is_private=private)
        destination.require_usable()
    return destination


def push_finished(folder: Path, destination: "Destination") -> str:
    """Upload a model that was just made, and return its page.

    Raises:
        UploadError: The hub does not take it; says how to repeat the upload.
        Interrupted: Stopped; likewise.
    """
    words = ["tide-cache", "push", str(folder), destination.name, *(["--private"] if destination.is_private else [])]
    kept = f"{folder} is complete and stays. Upload it with: {shlex.join(words)}"
    try:
        with chatter_to_stderr():
            from tide_cache.inspecting.publishing import publish_model

            publish_model(folder, destination)
    except UploadError as error:
        raise UploadError(f"{error}\n{kept}") from error
    except KeyboardInterrupt:
        raise Interrupted(f"The upload was stopped. {kept}") from None
    return destination.page
