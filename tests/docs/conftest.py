"""The files that the quick start begins with."""

import re
import shutil

import pytest

from helpers.pages import QUICK_START, blocks_of
from tide_cache.demo.tasks import make_tasks, write_tasks


@pytest.fixture(scope="session")
def quick_start(tmp_path_factory, vocabularies, tiny_teacher):
    """A folder as `tide-cache demo` leaves it, with the run files of the quick start."""
    root = tmp_path_factory.mktemp("quick-start")
    demo = root / "demo-output"
    (demo / "corpus").mkdir(parents=True)
    for name, count, seed in (("student", 24, 1), ("held-out", 3, 2)):
        write_tasks(demo / "corpus" / f"{name}.jsonl", make_tasks(count, seed))
    shutil.copytree(tiny_teacher, demo / "teacher" / "model")
    shutil.copytree(vocabularies.first, demo / "tokenizers" / "first")
    for block in blocks_of(QUICK_START):
        if title := re.fullmatch(r'toml title="(.+)"', block.language):
            (root / title[1]).write_text(block.text)
    return root
