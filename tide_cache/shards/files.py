"""The few file operations that publishing and reading need, behind one seam.

Tests of crashes and full disks replace this class; nothing else in the format code touches the file system.
"""

import os
from pathlib import Path


class LocalFiles:
    """Files on a local or mounted file system."""

    def write_new(self, path: Path, data: bytes) -> None:
        """Create a file that must not exist, write all of it, and wait until it is on the device."""
        with open(path, "xb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; an existing target is never replaced (FileExistsError)."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name at one stroke; an existing target is replaced."""
        os.replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the folder's entries are on the device."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """Create a folder and those above it, where they are missing, each with a durable entry."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)

    def size(self, path: Path) -> int:
        """Bytes of a file."""
        return path.stat().st_size

    def read(self, path: Path, start: int, size: int) -> bytes:
        """Read a byte range; shorter only where the file ends."""
        with open(path, "rb", buffering=0) as file:
            parts = []
            while size > 0 and (part := os.pread(file.fileno(), size, start)):
                parts.append(part)
                start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def list_folder(self, folder: Path) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""
        return sorted(os.listdir(folder)) if folder.is_dir() else []


LOCAL_FILES = LocalFiles()
