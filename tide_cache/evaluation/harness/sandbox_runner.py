"""Runs one untrusted program; started by `sandbox.py` as a separate script, never imported.

The program comes on stdin. The result goes to a separate file descriptor: `ready` once the process is shut in, then
`passed` when the program has ended, or the name of the exception. A program that calls `os._exit` gives no result.
"""

import ctypes
import json
import os
import resource
import sys
import types

MS_NOSUID_NODEV = 2 | 4
MOUNT_SETATTR = 442  # the same number on every architecture
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY = 1
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522


def require_done(result: int, what: str) -> None:
    """Raise the C library's error if a call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def close_files(scratch: str, scratch_bytes: int) -> None:
    """Make all files read-only except a new, small folder in memory, hide /proc, and drop all privileges."""
    libc = ctypes.CDLL(None, use_errno=True)
    read_only = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(read_only), ctypes.sizeof(read_only))
    require_done(libc.syscall(*arguments), "mount_setattr of /")
    for folder, num_bytes in ((scratch, scratch_bytes), ("/proc", 4096)):
        options = f"size={num_bytes},mode=700".encode()
        require_done(libc.mount(b"none", folder.encode(), b"tmpfs", MS_NOSUID_NODEV, options), f"mount on {folder}")
    require_done(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    require_done(libc.capset(header, none), "capset")


def main() -> None:
    """Shut the process in, then run the program."""
    settings = json.loads(sys.argv.pop())
    program = sys.stdin.buffer.read()
    verdict = os.fdopen(settings["verdict"], "wb", buffering=0)
    try:
        if settings["is_isolated"]:
            close_files(settings["scratch"], settings["file_bytes"])
        os.chdir(settings["scratch"])
        for name, limit in settings["rlimits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
    except OSError as error:
        verdict.write(f"no sandbox: {error}".encode())
        return
    verdict.write(b"ready\n")
    module = sys.modules["program"] = types.ModuleType("program")  # dataclasses look for their module there
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
    except BaseException as error:
        verdict.write(type(error).__name__.encode())
    else:
        verdict.write(b"passed")


main()
