"""The doctor names what is there and what is missing, and fails only where the core would."""

import importlib
import sys
from importlib import metadata

import pytest

from tide_cache_cli import machine
from tide_cache_cli.machine import examine


@pytest.fixture
def require(monkeypatch):
    """Let the package require other things."""

    def add(*requirements):
        monkeypatch.setattr(machine.metadata, "requires", lambda name: list(requirements))

    return add


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_this_machine_works(tmp_path):
    findings = examine(tmp_path)
    assert not any(finding.is_fault for finding in findings)
    found = by_name(findings)
    assert found["torch"].found == metadata.version("torch")
    assert found["python"].found.startswith(sys.version.split()[0])
    assert "cores" in found["cpu"].found
    assert str(tmp_path) in found["disk"].found
    assert {"bfloat16", "flex attention", "grouped GEMM", "DeepSpeed ops"} <= found.keys()
    assert {finding.section for finding in findings} >= {"extra: ray", "extra: remote", "extra: quantised"}
    assert not any(finding.section == "extra: dev" for finding in findings)


def test_a_missing_or_old_requirement_is_a_fault_with_the_line_that_fixes_it(tmp_path, require):
    require("no-such-package-xyz>=1.2", "numpy>=99", "rich>=1")
    found = by_name(examine(tmp_path))
    missing, old = found["no-such-package-xyz"], found["numpy"]
    assert (missing.state, missing.is_fault) == ("missing", True)
    assert missing.way_out == "pip install 'no-such-package-xyz>=1.2'"
    assert (old.state, old.is_fault) == ("too old", True)
    assert old.found == f"{metadata.version('numpy')}, expected >=99"
    assert not found["rich"].is_fault


def test_a_missing_extra_is_no_fault(tmp_path, require):
    require('no-such-package-xyz>=1; extra == "wandb"')
    found = by_name(examine(tmp_path))["no-such-package-xyz"]
    assert (found.section, found.state, found.is_fault) == ("extra: wandb", "missing", False)
    assert found.way_out == "pip install 'tide-cache[wandb]'"


def test_the_unrelated_tokenkit_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "tokenkit").mkdir()
    (tmp_path / "tokenkit" / "__init__.py").write_text("raise SystemExit('none of its code is run')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    found = by_name(examine(tmp_path))["tokenkit"]
    assert (found.state, found.is_fault) == ("broken", False)
    assert "expected bminixhofer/tokenkit, found a package" in found.found
    assert "pip install git+https://github.com/bminixhofer/tokenkit" in found.way_out


def test_a_full_disk_is_noted(tmp_path, monkeypatch):
    usage = type(machine.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage(10**12, 10**12 - 10**9, 10**9))
    found = by_name(examine(tmp_path))["disk"]
    assert (found.state, found.is_fault) == ("note", False)
    assert "tide-cache plan" in found.way_out
