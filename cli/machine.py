"""What this machine offers tide-cache: packages and versions, devices, what they can do, and what is missing.

Nothing is assumed to be installed but the standard library and `packaging`: an installation that lacks the rest is
what this is for.
"""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from tide_cache.errors import RunFileError
from tide_cache.version import __version__
from tide_cache.wording import size

State = Literal["ok", "note", "missing", "too old", "broken"]
"""note: fine without it, or something to know. The last three are faults where the line is required."""

_DISTRIBUTION = "tide-cache"
_DEVELOPERS_EXTRA = "dev"
_LOW_DISK_BYTES = 10 * 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: What it belongs to.
        name: What was looked at.
        found: What was found: a version, a size, a yes or no.
        state: How that is.
        is_required: Whether the core does not work without it.
        way_out: What to do about it; empty when there is nothing to do.
    """

    section: str
    name: str
    found: str
    state: State = "ok"
    is_required: bool = False
    way_out: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether this keeps the core from working."""
        return self.is_required and self.state not in ("ok", "note")


def examine(folder: Path) -> tuple[Finding, ...]:
    """Look at this machine; nothing is installed, changed or sent.

    Args:
        folder: Whose disk is looked at.
    """
    return (*_versions(), *_extras(), *_devices(), *_kernels(), *_around(folder))


def _versions() -> Iterator[Finding]:
    yield Finding("required", "tide-cache", __version__)
    python, wanted = platform.python_version(), ">=3.11"
    is_new = Requirement(f"python{wanted}").specifier.contains(python, prereleases=True)
    yield Finding("required", "python", f"{python} on {platform.platform()}", "ok" if is_new else "too old", True)
    for requirement in _requirements():
        if requirement.marker is None:
            yield _package("required", requirement, True, f"pip install '{_named(requirement)}'")


def _extras() -> Iterator[Finding]:
    for extra in metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []:
        if extra == _DEVELOPERS_EXTRA:
            continue
        for requirement in _requirements():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                yield _package(f"extra: {extra}", requirement, False, f"pip install 'tide-cache[{extra}]'")
    yield _tokenkit()


def _requirements() -> Iterable[Requirement]:
    return map(Requirement, metadata.requires(_DISTRIBUTION) or [])


def _named(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _package(section: str, requirement: Requirement, is_required: bool, install: str) -> Finding:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(section, requirement.name, "not installed", "missing", is_required, install)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(section, requirement.name, version, "ok", is_required)
    found = f"{version}, expected {requirement.specifier}"
    return Finding(section, requirement.name, found, "too old", is_required, install)


def _tokenkit() -> Finding:
    """Distinguish bminixhofer/tokenkit from the unrelated package of that name."""
    section, name = "extra: aligner", "tokenkit"
    if importlib.util.find_spec(name) is None:
        way_out = "pip install git+https://github.com/bminixhofer/tokenkit"
        return Finding(section, name, "not installed; only for pairing.aligner = 'tokenkit'", "missing", False, way_out)
    try:
        from tide_cache.pairing.tokenkit_aligner import TokenkitAligner

        TokenkitAligner()
    except RunFileError as error:
        reason, _, way_out = str(error).removeprefix("pairing.aligner: ").partition("\n")
        return Finding(section, name, reason, "broken", False, way_out.replace("\n", " "))
    except ImportError as error:
        return Finding(section, name, f"cannot be tried: {error}", "note")
    return Finding(section, name, "bminixhofer/tokenkit")


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("devices", "cpu", f"{cores} cores, {size(memory)} memory, {platform.machine()}")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", "torch", f"cannot be imported: {error}", "broken", True, "pip install 'torch>=2.6'")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found = f"{torch.cuda.get_device_name(number)}, {size(free)} of {size(total)} free"
        yield Finding("devices", f"cuda:{number}", found)
    if not torch.cuda.device_count():
        yield Finding("devices", "cuda", f"none; torch is built for CUDA {torch.version.cuda or 'none'}", "note")


def _kernels() -> Iterator[Finding]:
    """Yield what the devices can do; a slower kernel replaces one that is not usable."""
    try:
        import torch

        from tide_cache.modeling.experts import has_grouped_gemm
    except (ImportError, OSError):
        return
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if has_cuda else "cpu")
    is_half_fast = has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    yield _kernel(
        "bfloat16", is_half_fast, "works, but no device here is fast at it; train.precision = 'float32' avoids it"
    )
    has_compiler = has_cuda and importlib.util.find_spec("triton") is not None
    yield _kernel("flex attention", has_compiler, "not usable: needs CUDA and triton; teacher.attention = 'sdpa' works")
    grouped = has_grouped_gemm(device)
    yield _kernel("grouped GEMM", grouped, "not usable: needs bfloat16 on CUDA; experts are computed one after another")


def _kernel(name: str, is_usable: bool, instead: str) -> Finding:
    return Finding("kernels", name, "usable" if is_usable else instead, "ok" if is_usable else "note")


def _around(folder: Path) -> Iterator[Finding]:
    usage = shutil.disk_usage(folder)
    is_low = usage.free < _LOW_DISK_BYTES
    found = f"{size(usage.free)} of {size(usage.total)} free at {folder}"
    way_out = "`tide-cache plan RUN.toml` predicts what a build writes" if is_low else ""
    yield Finding("around", "disk", found, "note" if is_low else "ok", way_out=way_out)
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    note = f"none is needed: AdamW is torch's; C++ compiler for ops of your own: {compiler or 'not found'}"
    yield Finding("around", "DeepSpeed ops", note)
