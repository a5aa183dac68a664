"""Every command in the docs: those of the quick start run, and of the others each at least parses."""

import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import typer
from deepspeed.launcher.runner import parse_args as parse_deepspeed
from torch.distributed.run import get_args_parser as torchrun_parser

from benchmarks.__main__ import _parser as benchmarks_parser
from helpers.pages import PAGES, QUICK_START, ROOT, blocks_of, run_in
from tide_cache_cli.main import app

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OTHER_PROGRAMS = {"duckdb", "git", "hf", "lm_eval", "lmdeploy", "ls", "printf", "ray", "source", "test"}
"""Programs that are not ours and say nothing of us."""
INLINE = re.compile(r"(?<!`)`((?:tide-cache|python -m benchmarks\S*|make|pip install) [^`]+)`(?!`)")
UsageError = typer.BadParameter.__base__
IN_SHORT = {"train": ["--set", "train.steps=2"], "generate": ["--max-new-tokens", "8"]}
DRY = {
    "build-teacher-shards": ["--dry-run", "--set", "build.out=new-cache", "--set", "teacher.max_length=96"],
    "answers": ["--dry-run", "--max-new-tokens", "16"],
    "train": ["--dry-run", "--set", "train.out=new-run", "--set", "train.global_batch=64"],
    "repair": ["--dry-run"],
    "plan": ["--set", "teacher.max_length=96"],
    **{name: [] for name in ("inspect", "verify", "export", "eval")},
    "generate": IN_SHORT["generate"],
    "sweep": None,
    "eval-tasks": None,
    "import-topk": None,
}
"""What makes a command of the docs run without paying for it; with None it is parsed, for there are no files for it."""
VARIABLES = {"$TRAIN": "chats.jsonl", "$TEST": "held-out.jsonl"}
FIRST = "runs/first/students/shared-kl/seed-0/model"
STAND_INS = {
    "demo-output/corpus/student.jsonl": ["chats.jsonl"],
    "demo-output/corpus/held-out.jsonl": ["held-out.jsonl"],
    "demo-output/teacher/model": ["TEACHER", "runs/teacher/model", "runs/first/teacher/model"],
    "demo-output/tokenizers/first": ["TOKENIZER", "tokenizers/qwen"],
    "runs/student/model": [
        "STUDENT",
        "checkpoint",
        "checkpoints/qwen3-bd3lm",
        "students/qwen3-0.6b",
        "students/start",
        FIRST,
    ],
    "build.toml": ["llada2.toml", "examples/gsm8k-cpu/capture-shared.toml", "examples/pipeline-a/capture.toml"],
    "train.toml": ["run.toml"],
    "cache": ["caches/llada2-mini", "runs/first/cache"],
    "teacher.toml": ["examples/gsm8k-cpu/teacher.toml"],
}
"""Files that the docs name, by what of the quick start takes their place."""


def commands_of(text):
    """Return the commands of a shell block, joined where a line goes on, without what the shell itself does."""
    for line in text.replace("\\\n", " ").split("\n"):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"exec|[A-Z_]+=.*", words[0]):
            words = words[1:]
        for separator in ("&&", "||"):
            words = words[: words.index(separator)] if separator in words else words
        while words and words[0] != "export":
            end = words.index("|") if "|" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def _inline(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(found) for found in INLINE.findall(text)]


IN_BLOCKS = [
    pytest.param(words, id=f"{block.id}:{' '.join(words)[:60]}")
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "sh"
    for words in commands_of(block.text)
]
IN_TEXT = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}:{' '.join(words)[:60]}")
    for page in PAGES
    for words in _inline(page)
]


@cache
def command_line():
    return typer.main.get_command(app)


@cache
def torchrun():
    return torchrun_parser()


def parse_tide_cache(arguments):
    """Let the real command line parse arguments, without running anything."""
    group = command_line()
    arguments = [word for word in arguments if word not in ("-h", "--help")]
    if all(word.startswith("-") for word in arguments):  # no subcommand: one of these would change the shell's files
        known = {name for option in group.params for name in option.opts}
        assert known.issuperset(arguments), arguments
        return {}
    context = group.make_context("tide-cache", list(arguments), resilient_parsing=False)
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None, name
    return command.make_context(name, rest, parent=context).params


def ours(words):
    """Return the arguments of `tide-cache` where a command runs it, by whatever launcher; else None."""
    for module in ("-m", "--module"):
        if module in words and words[words.index(module) + 1] == "tide_cache_cli.main":
            return words[words.index(module) + 2 :]
    names = [Path(word).name for word in words]
    if words[0] in ("srun", "torchrun", "deepspeed") or names[0] == "tide-cache":
        assert "tide-cache" in names, words
        return [word for word in words[names.index("tide-cache") + 1 :] if word != "$resume"]
    return None


def check(words):
    """Refuse a command that would be refused for how it is written."""
    program, *rest = words
    if program == "torchrun":
        torchrun().parse_args(rest)
    elif program == "deepspeed":
        assert parse_deepspeed(rest).no_local_rank, "it would add an option that the command line does not know"
    if (arguments := ours(words)) is not None:
        parse_tide_cache(arguments)
    elif program == "make":
        assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in rest), rest
    elif Path(program).name == "python" and rest[:2] == ["-m", "benchmarks"]:
        if rest[2] != "NAME":
            benchmarks_parser().parse_args(rest[2:])
    elif Path(program).name == "python" and rest[:2] == ["-m", "sglang.launch_server"]:
        pass  # an engine that serves students, on a GPU
    elif Path(program).name == "python" and rest[0] == "-m":
        module = ROOT / rest[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), rest
    elif Path(program).name == "python":
        text = (ROOT / rest[0]).read_text()
        assert all(f'"{word}"' in text for word in rest[1:] if word.startswith("--")), rest
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if not word.startswith("-") and word != "no:xdist"), rest
    elif program == "pip":
        for extra in (name for word in rest for name in re.findall(r"tide-cache\[(\w+)\]", word)):
            assert extra in EXTRAS
    else:
        assert program in OTHER_PROGRAMS, f"{program}: no test knows this program"


@pytest.mark.parametrize("words", IN_BLOCKS)
def test_a_command_of_a_block_can_be_run(words):
    check(words)


@pytest.mark.parametrize("words", IN_TEXT)
def test_a_command_in_the_text_can_be_run(words):
    if words[1:] == ["COMMAND", "--help"]:
        return
    try:
        check(words)
    except UsageError as error:
        # a mention may leave out what the command or an option needs
        if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
            raise


@pytest.mark.parametrize(
    "command",
    [
        "tide-cache train --nonsense",
        "tide-cache teach run.toml",
        "make nothing",
        "python -m benchmarks nothing",
        "rm x",
        "torchrun --nonsense 2 -m tide_cache_cli.main train run.toml",
        "deepspeed --module tide_cache_cli.main train run.toml",
        "python examples/gsm8k-cpu/run.py --nonsense 1",
    ],
)
def test_a_wrong_command_is_seen(command):
    with pytest.raises((AssertionError, SystemExit, UsageError)):
        check(shlex.split(command))


def test_there_are_commands():
    assert len(IN_BLOCKS) > 40
    assert len(IN_TEXT) > 40


def _tide_cache_commands(pages):
    """Return the arguments of `tide-cache` in the blocks of pages that can run here."""
    for block in (block for page in pages for block in blocks_of(page) if block.language == "sh"):
        for words in commands_of(block.text):
            arguments = ours(words)
            if arguments and _dry(arguments) is not None:
                yield [VARIABLES.get(word, word) for word in arguments]


def _dry(arguments):
    """Return what makes a command run here, or None where it is only parsed."""
    if "--suite" in arguments or "--tasks" in arguments:
        return None  # these fetch data
    if any(word.startswith("hf://") for word in arguments):
        return None
    if arguments[0] in DRY:
        return DRY[arguments[0]]
    return ["--dry-run"] if "dry_run" in parse_tide_cache(arguments) else None


QUICK_START_COMMANDS = list(_tide_cache_commands([QUICK_START]))
OTHER_COMMANDS = list(_tide_cache_commands([page for page in PAGES if page != QUICK_START]))


@pytest.fixture(scope="session")
def walked(quick_start):
    """The quick start, gone through from its first step to its last, with two steps in place of forty."""
    with pytest.MonkeyPatch.context() as patch:
        for words in QUICK_START_COMMANDS:
            result = run_in(quick_start, [*words, *IN_SHORT.get(words[0], [])], patch)
            assert result.exit_code == 0, f"{words}: {result.output}"
    return quick_start


def test_the_quick_start_leads_to_a_student(walked):
    assert (walked / "cache" / "manifest.json").is_file()
    for run in ("student", "baseline", "tide-cross"):
        assert (walked / "runs" / run / "model" / "model.safetensors").is_file()


@pytest.fixture(scope="session")
def stand_ins(walked):
    """The same folder, where the files that other pages name lead to those of the quick start."""
    with_corpus = (walked / "train.toml").read_text().replace('cache = "cache"', 'corpus.spec = "chats.jsonl"')
    (walked / "teacher.toml").write_text(with_corpus.replace('[[objective]]\nkind = "chunk_kl"\n', ""))
    for there, names in STAND_INS.items():
        for name in names:
            (walked / name).parent.mkdir(parents=True, exist_ok=True)
            (walked / name).symlink_to((walked / there).resolve())
    return walked


ARRAY = {"ID": "1", "MIN": "0", "MAX": "1", "STEP": "1", "COUNT": "2"}
"""What Slurm tells the second element of an array of two."""


@pytest.mark.parametrize("arguments", OTHER_COMMANDS, ids=" ".join)
def test_a_command_runs_or_runs_dry(arguments, stand_ins, monkeypatch, tmp_path):
    """Where a file of the docs is missing here, its name goes into STAND_INS."""
    out = ["--out", str(tmp_path / "view.parquet")] if arguments[0] == "export" else []
    for name, value in ARRAY.items() if "auto" in arguments else ():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    monkeypatch.setenv("HF_TOKEN", "a-token")  # a dry run asks whether there is one
    result = run_in(stand_ins, [*arguments, *out, *_dry(arguments)], monkeypatch)
    assert result.exit_code == 0, result.output
