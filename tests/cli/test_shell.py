"""Comfort of the shell: completion, suggestions, how much is said, and colours."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("tide-cache")
ESCAPE = "\x1b["


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tide-cache", "build"], ["build-teacher-shards"]),
        (["tide-cache", "verify", "--de"], ["--deep"]),
        (["tide-cache", "train", "--preset", "cross/tide-c"], ["cross/tide-cross", "cross/tide-chunk"]),
        (["tide-cache", "train", "--objective", "rev"], ["reverse_kl", "reverse_calm"]),
    ],
)
def test_bash_completes_commands_options_and_values(installed, tmp_path, words, offered):
    """Bash itself runs the script that completion installs."""
    script = installed(cwd=tmp_path, _TIDE_CACHE_COMPLETE="source_bash").stdout
    asked = f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _tide_cache_completion "{COMMAND}"'
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'], capture_output=True, text=True
    )
    assert done.stdout.split() == offered, done.stderr


def test_completion_can_be_installed(call):
    text = call("--help").stdout
    assert "--install-completion" in text
    assert "--show-completion" in text


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["veriyf", "cache"], "Did you mean 'verify'?"),
        (["train", "--nmu-gpus", "2"], "(Possible options: --num-gpus)"),
        (["train", "train.toml", "--set", "train.stepz=3"], "train.stepz: unknown key; did you mean 'steps'?"),
        (["train", "train.toml", "--preset", "cross/tide-crss"], "did you mean 'cross/tide-cross'?"),
        (["train", "train.toml", "--objective", "reverse_clm"], "did you mean 'reverse_calm'?"),
        (["train", "train.toml", "--objective", "xyz"], "found kind 'xyz'; known here: bernoulli_kl, calm, ce,"),
    ],
)
def test_what_is_misspelt_is_suggested(call, arguments, suggestion):
    result = call(*arguments)
    assert result.exit_code == 2
    assert suggestion in result.stderr


@pytest.fixture
def call_here(call, monkeypatch):
    """`call`, with variables; what it sets itself does not outlive the test."""
    for name in ("TIDE_CACHE_LOG", "TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
        monkeypatch.setenv(name, "")

    def run(*arguments, log=""):
        monkeypatch.setenv("TIDE_CACHE_LOG", log)
        return call(*arguments)

    return run


def test_quiet_leaves_results_and_errors(call_here):
    loud, quiet = call_here("verify", "cache"), call_here("-q", "verify", "cache")
    assert re.search(r"verify: .* of ", loud.stderr)
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout != ""
    refused = call_here("--quiet", "verify", "nowhere")
    assert refused.exit_code == 3
    assert refused.stderr.startswith("error: nowhere: no cache here")


def test_the_variable_stands_for_the_option(call_here):
    assert call_here("verify", "cache", log="quiet").stderr == ""
    assert "verify: " in call_here("--verbose", "verify", "cache", log="quiet").stderr
    wrong = call_here("verify", "cache", log="loud")
    assert wrong.exit_code == 2
    assert wrong.stderr == "error: TIDE_CACHE_LOG: found 'loud'; expected one of quiet, normal, verbose\n"


def test_quiet_and_verbose_exclude_each_other(call_here):
    result = call_here("-q", "-v", "verify", "cache")
    assert result.exit_code == 2
    assert result.stderr == "error: found --quiet and --verbose; expected one of them\n"


def test_verbose_shows_what_libraries_log_with_time_and_rank(tmp_path):
    code = (
        "import logging\nfrom tide_cache_cli.verbosity import choose_verbosity\n"
        "choose_verbosity({quiet}, {verbose})\nlogging.getLogger('library').info('loaded %d', 3)"
    )

    def run(quiet, verbose):
        environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
        environment.pop("TIDE_CACHE_LOG", None)
        text = code.format(quiet=quiet, verbose=verbose)
        return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True).stderr

    assert re.fullmatch(r"\S+T\S+ rank 1/2 info: library: loaded 3\n", run(False, True))
    assert run(False, False) == run(True, False) == ""


RED = f"{ESCAPE}31m"
"""The frame of an error."""


@pytest.mark.parametrize(
    ("on_terminal", "variables", "is_red"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
    ],
)
def test_colours_are_for_terminals(tmp_path, on_terminal, variables, is_red):
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color"} | variables
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    done = subprocess.run([COMMAND, "verify", "--nope"], cwd=tmp_path, env=environment, stderr=writer)
    text = os.read(reader, 1 << 16).decode()
    os.close(writer)
    os.close(reader)
    assert done.returncode == 2
    assert "nope" in text
    assert (RED in text) == is_red
    assert (ESCAPE in text) == (is_red or on_terminal)  # NO_COLOR leaves bold and dim


def test_help_names_the_exit_codes(call):
    text = " ".join(call("--help").stdout.split())
    assert "0 success; 1 the run failed; 2 bad invocation or run file; 3 the data was refused" in text
