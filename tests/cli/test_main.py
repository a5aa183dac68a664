"""What a user meets before any work is done: help, suggestions, usage errors."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tide_cache.families import FAMILIES
from tide_cache.modeling.backbone import ADAPTERS
from tide_cache_cli.main import app

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cache-v1"
COMMANDS = [
    "demo", "build-teacher-shards", "answers", "import-topk", "convert", "train", "inspect", "verify", "eval",
    "generate", "doctor", "schema",
]  # fmt: skip


def call(*arguments):
    return CliRunner().invoke(app, arguments)


def test_help_lists_every_command_in_the_order_of_use():
    text = call("--help").stdout
    found = re.findall(r"^\W ([a-z-]+)  ", text.split("Commands")[1], flags=re.MULTILINE)
    assert [name for name in found if name in COMMANDS] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert f"tide-cache {command}" in result.stdout.split("Example:")[1]


def test_who_needs_no_heavy_library_loads_none():
    """Starting must not cost what torch costs: neither help, nor opening, checking and reading about a cache."""
    code = textwrap.dedent(f"""
        import sys, tide_cache_cli.main
        heavy = {{'torch', 'transformers', 'tokenizers', 'deepspeed', 'datasets'}}
        print(sorted({{*heavy, 'pyarrow'}} & set(sys.modules)))
        import tide_cache, tide_cache.inspecting.inspection
        from tide_cache.manifest import verify
        cache = tide_cache.open_cache({str(GOLDEN)!r})
        assert verify(cache.root, deep=True).ok
        print(len(cache), sorted(heavy & set(sys.modules)))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "8 []", ""]


def test_a_misspelt_command_is_suggested():
    result = call("trian")
    assert result.exit_code == 2
    assert "Did you mean 'train'?" in result.stderr


@pytest.mark.parametrize("arguments", [("train", "--nmu-gpus", "2"), ("verify",), ("train", "--num-gpus", "0")])
def test_wrong_usage_exits_2_and_leaves_stdout_empty(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_an_unexpected_exception_is_not_hidden(monkeypatch):
    """A fault of ours shows its traceback and exits 1, as Python does."""
    monkeypatch.setattr("tide_cache_cli.schema_files.schema_texts", lambda: 1 / 0)
    result = call("schema", "--check", "schemas")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_path_that_cannot_be_written_is_named_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    result = call("schema", "--out", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    named = f"error: {tmp_path / 'file' / 'below'}: cannot be written: Not a directory (errno 20)."
    assert result.stderr.startswith(named)
    assert isinstance(result.exception, SystemExit)


def test_ctrl_c_before_there_is_work_exits_130_without_a_traceback(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("tide_cache_cli.schema_files.schema_texts", interrupted)
    result = call("schema", "--check", "schemas")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted before any work was done; run the same command again.\n"


def test_the_version_is_printed(call):
    assert call("--version").stdout.startswith("tide-cache 0.")


HEAVY = ("torch", "transformers", "deepspeed", "pyarrow", "datasets", "huggingface_hub", "matplotlib")
BUILD_OF = ("--student", "/nowhere/student", "--dataset", "x.jsonl", "--out", "cache")
REFUSED = [
    (2, "verify", "--deeep", "/nowhere/cache"),
    (2, "plan", "nowhere.toml"),
    (3, "verify", "/nowhere/cache"),
    (3, "inspect", "/nowhere/cache"),
    (3, "export", "/nowhere/cache", "--view", "0", "--out", "x.parquet"),
    (3, "report", "/nowhere/cache"),
    (3, "generate", "/nowhere/model", "--prompt", "x"),
    (3, "eval", "/nowhere/model", "--dataset", "x.jsonl"),
    (3, "eval", "strange", "--dataset", "x.jsonl"),
    (2, "convert", "/nowhere/model", "--out", "."),
    (3, "convert", "/nowhere/model", "--out", "x"),
    (3, "convert", "strange", "--out", "x"),
    (3, "plan", "--teacher", "strange", *BUILD_OF),
    (3, "build-teacher-shards", "--teacher", "/nowhere/teacher", *BUILD_OF),
    (3, "train", "--student", "/nowhere/s", "--cache", "cache", "--out", "x", "--set", "train.steps=3"),
    (3, "sweep", "--student", "strange", "--cache", "/nowhere/c", "--objective", "ce", "--out", "x", "--set",
     "train.steps=3"),
]  # fmt: skip


def test_refusals_that_need_no_heavy_library_load_none(tmp_path):
    """They come at once, where importing torch and transformers may take half a minute."""
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "gpt2"}')
    code = textwrap.dedent(f"""
        import sys
        from typer.testing import CliRunner
        from tide_cache_cli.main import app
        for code, *arguments in {REFUSED!r}:
            result = CliRunner().invoke(app, arguments)
            loaded = [name for name in {HEAVY!r} if name in sys.modules]
            assert result.exit_code == code and not loaded, (arguments, result.exit_code, loaded, result.stderr)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_light_table_of_families_is_that_of_the_adapters():
    assert {name: adapter.family for name, adapter in ADAPTERS.items()} == FAMILIES
