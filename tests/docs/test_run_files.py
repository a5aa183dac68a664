"""The run files in the docs and examples are valid."""

import json
import re
import tomllib

import pytest

from helpers.pages import PAGES, ROOT, blocks_of
from tide_cache.config.answers import AnswersRun
from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.sweep import SweepRun
from tide_cache.config.train import TrainRun

EXAMPLES = sorted((ROOT / "examples").rglob("*.toml"))
WHOLE = [
    pytest.param(block.text, id=block.id)
    for page in PAGES
    for block in blocks_of(page)
    if block.language.startswith("toml") and any(name in block.text for name in ("[train]", "[build]", "[answers]"))
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_run_files_are_valid(path):
    sections = tomllib.loads(path.read_text())
    model = (
        BuildRun
        if "build" in sections
        else AnswersRun
        if "answers" in sections
        else SweepRun
        if "sweep" in sections
        else TrainRun
    )
    load_run_file(model, path)


@pytest.mark.parametrize("text", WHOLE)
def test_run_files_in_the_docs_are_valid(text, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    model = BuildRun if "[build]" in text else AnswersRun if "[answers]" in text else TrainRun
    load_run_file(model, path)


def test_there_are_run_files_to_check():
    assert len(EXAMPLES) == 23
    assert len(WHOLE) >= 8


def _keys(kind):
    """Return every `section.key` of a run file, by its schema."""
    schema = json.loads((ROOT / "schemas" / f"{kind}-run.json").read_text())

    def fields(node):
        for option in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
            while "$ref" in option:
                option = schema["$defs"][option["$ref"].rpartition("/")[2]]
            yield from option.get("properties", {}).items()

    def walk(node, name):
        for key, child in fields(node):
            yield (whole := f"{name}.{key}" if name else key)
            if whole.count(".") < 2:
                yield from walk(child, whole)

    return set(walk(schema, ""))


KEYS = _keys("build") | _keys("train") | _keys("answers")
SECTIONS = {key for key in KEYS if "." not in key} - {"preset", "semantics"}
NAMED = sorted(
    {
        (page.relative_to(ROOT), name)
        for page in PAGES
        for name in re.findall(r"`(?:--set )?([a-z_]+\.[a-z_.]+?)(?: ?= ?[^`]*)?`", page.read_text())
        if name.split(".")[0] in SECTIONS and not name.endswith(("toml", "json", "jsonl", "md"))
    }
)


def test_every_key_that_the_docs_name_is_one():
    unknown = [f"{page}: {name}" for page, name in NAMED if name not in KEYS]
    assert not unknown
    assert len(NAMED) > 60


def test_the_arms_of_the_pipelines_page_are_arms_of_a_sweep(tmp_path):
    (block,) = (b for b in blocks_of(ROOT / "docs" / "pipelines.md") if b.language == "toml")
    run = (ROOT / "examples/pipeline-a/student.toml").read_text() + block.text
    (tmp_path / "sweep.toml").write_text(run)
    assert [arm.name for arm in load_run_file(SweepRun, tmp_path / "sweep.toml").sweep.arm] == ["four views", "soft"]
