"""`--passes` adds a pass to a finished cache."""

import json
import shutil

import pytest


@pytest.fixture
def copy(workshop, tmp_path):
    shutil.copytree(workshop.cache, tmp_path / "cache")
    return tmp_path / "cache"


def test_a_pass_is_added_from_the_command_line(call, copy):
    before = {path: path.read_bytes() for path in copy.rglob("*.parquet")}
    done = call("build-teacher-shards", "build.toml", "--out", copy, "--passes", "plain,compdemo", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["passes"] == ["plain", "compdemo"]
    assert all(path.read_bytes() == data for path, data in before.items())
    assert call("verify", copy, "--deep").exit_code == 0
    assert "shown_first" in call("inspect", copy).stdout
    assert "plain, compdemo" in call("build-teacher-shards", "build.toml", "--out", copy).stdout


def test_a_dry_run_counts_the_bytes_of_every_pass(call, copy):
    arguments = ("build-teacher-shards", "build.toml", "--out", copy, "--dry-run", "--json", "--passes")
    one, both = (json.loads(call(*arguments, passes).stdout) for passes in ("plain", "plain,compdemo"))
    assert both["run"]["build"]["passes"] == ["plain", "compdemo"]
    assert one["cache_id"] == both["cache_id"]
    assert 1.5 < both["estimate"]["cache_bytes"] / one["estimate"]["cache_bytes"] < 2


def test_an_unknown_pass_is_refused(call, copy):
    done = call("build-teacher-shards", "build.toml", "--out", copy, "--passes", "plain, compdemo")
    assert done.exit_code == 2
    assert "build.passes.1: found ' compdemo'; Input should be 'plain' or 'compdemo'" in done.stderr
