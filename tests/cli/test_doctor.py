"""`tide-cache doctor`: its exit code says whether the core works."""

import json

from tide_cache.modeling.backbone import ADAPTERS
from tide_cache_cli import machine


def test_a_working_machine_exits_0(call):
    result = call("doctor")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "pip install 'tide-cache[" in result.stdout


def test_a_missing_package_exits_1_and_is_named(call, monkeypatch):
    monkeypatch.setattr(machine.metadata, "requires", lambda name: ["no-such-package-xyz>=1.2"])
    result = call("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False
    assert result.stderr == (
        "error: no-such-package-xyz: not installed (missing); pip install 'no-such-package-xyz>=1.2'\n"
    )


def test_it_lists_every_family_that_loads(call):
    shown = call("doctor", "--teachers").stdout
    assert {"sdar_moe", "Dream", "shifted"} <= set(shown.split())
    families = {entry["name"]: entry for entry in json.loads(call("doctor", "--teachers", "--json").stdout)}
    assert families.keys() == ADAPTERS.keys()
    assert [families[name]["is_student"] for name in ("sdar", "llada", "Dream", "llada_moe")] == [
        True,
        True,
        False,
        False,
    ]
