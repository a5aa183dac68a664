"""Where a repair moves bad files: a new folder inside the cache for every repair; nothing is ever deleted."""

from tide_cache.locations import CachePath
from tide_cache.manifest.folder import QUARANTINE
from tide_cache.shards import Files, LocalFiles


class Quarantine:
    """Bad files of one repair, under `quarantine/NNNN/` with the paths that they had inside the cache."""

    def __init__(self, root: CachePath, files: Files) -> None:
        self._root = root
        self._files = files
        self.folder: CachePath | None = None
        self.moved: list[str] = []

    def take(self, name: str) -> None:
        """Move a file aside, if it exists.

        Args:
            name: Its path inside the cache.

        Raises:
            OSError: The file system refused; the file is not moved.
        """
        source = self._root / name
        if source.name not in self._files.list_folder(source.parent):
            return
        if self.folder is None:
            self.folder = self._next_folder()
        target = self.folder / name
        self._files.make_folder(target.parent)
        if isinstance(self._files, LocalFiles):
            self._files.rename(source, target)  # whatever lies there: a link, a folder, a file that cannot be read
        else:
            self._files.create(target, self._files.read(source, 0, self._files.size(source)))
            self._files.remove(source)
        self._files.sync_folder(target.parent)
        self._files.sync_folder(source.parent)
        self.moved.append(name)

    def _next_folder(self) -> CachePath:
        taken = self._files.list_folder(self._root / QUARANTINE)
        number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
        return self._root / QUARANTINE / f"{number:04d}"
