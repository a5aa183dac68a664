"""`tide-cache plan` shows what `plan_build` finds, and writes nothing."""

import json
import shutil


def test_a_plan_shows_bytes_time_and_break_even(call, workshop, tmp_path):
    out = tmp_path / "cache"
    document = json.loads(call("plan", "build.toml", "--out", out, "--workers", "2", "--json").stdout)
    assert (document["num_shards"], document["num_rows"], document["workers"]) == (2, 24, 2)
    assert document["fits"]
    assert set(document["bytes_by_column"]) == {"pairs", "plain"}
    assert document["cache_bytes"] == sum(sum(of.values()) for of in document["bytes_by_column"].values())
    assert sum(document["bytes_by_signal"]["plain"].values()) == sum(document["bytes_by_column"]["plain"].values())
    result = call("plan", "build.toml", "--out", out, "--sample-rows", "8", "--epochs", "3", "--budget", "0")
    assert result.exit_code == 0, result.stderr
    assert "--budget 0 s ended the sample: counts come from 9 rows, sizes from" in " ".join(result.stderr.split())
    text = " ".join(result.stdout.split())
    for part in (
        "from 9 of 24 rows, views of 8 and",
        "views captured",
        "free: fits",
        "3 epochs x 24 samples x 1 forwards x",
        "break-even",
        "topk_ids",
    ):
        assert part in text
    assert not out.exists()


def test_too_small_a_disk_is_told(call, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"total": 2000, "free": 1000}))
    result = call("plan", "build.toml", "--out", tmp_path / "cache")
    assert result.exit_code == 0
    assert "DOES NOT FIT" in result.stdout
    assert f"{tmp_path / 'cache'}: found 1.0 kB free, the cache takes about" in result.stderr


def test_a_missing_run_file_is_named(call):
    result = call("plan", "nowhere.toml")
    assert result.exit_code == 2
    assert "nowhere.toml: no such run file" in result.stderr
