"""The second way to publish under a free name: a rename that refuses to replace, for file systems without links."""

import ctypes
import errno
import os
from functools import cache
from typing import Any

from tide_cache.locations import CachePath

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


def rename_exclusively(source: CachePath, target: CachePath) -> None:
    """Rename a file atomically; an existing target is never replaced.

    Raises:
        FileExistsError: The name is taken.
        OSError: The file system has no such rename, or refuses.
    """
    rename = _renameat2()
    code = errno.ENOSYS
    if rename is not None:
        names = os.fsencode(str(source)), os.fsencode(str(target))
        if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
    if code in _NO_SUCH_CALL:
        raise OSError(
            errno.ENOTSUP,
            "this file system has neither hard links nor a rename that refuses to replace, so two writers could mix; "
            "build on another one (ext4, XFS, NFS, Lustre) and copy the finished cache here",
            str(target),
        )
    raise OSError(code, os.strerror(code), str(target))  # FileExistsError for EEXIST


@cache
def _renameat2() -> Any:
    """Return the function of the C library; None if it has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return call
