"""Which checkpoints may be resumed: the newest whole one, with exactly the files that were committed, or none."""

import json
import os
import shutil

import pytest

from tide_cache.errors import CheckpointError
from tide_cache.training.checkpoints import MARKER, committed_checkpoints, find_checkpoint, save_checkpoint
from tide_cache.training.distributed import World

ALONE = World(0, 1, 0)
RUN = {"seed": 1}
V0 = '{"step": 2, "world_size": 1, "run": {}, "files": {}}'


def writing(dies_after=None):
    """Writes a few files into the folder; may die between them."""

    def write(target):
        for number, name in enumerate(["weights", "parts/more"]):
            if number == dies_after:
                raise KeyboardInterrupt
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text(f"{target.name} {name}")

    return write


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(writing(), tmp_path, step, RUN, ALONE)
    return tmp_path


def newest(folder):
    return find_checkpoint(folder, RUN).step


def refuse(folder, match):
    with pytest.raises(CheckpointError, match=match):
        newest(folder)


def test_the_newest_is_found_and_old_ones_are_removed(folder):
    assert newest(folder) == 2
    save_checkpoint(writing(), folder, 3, RUN, ALONE)
    assert [path.name for path in committed_checkpoints(folder)] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("dies_after", [0, 1])
def test_a_save_that_was_killed_falls_back_to_the_one_before(folder, dies_after):
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(writing(dies_after), folder, 3, RUN, ALONE)
    assert (folder / "step-00000003").is_dir()
    assert newest(folder) == 2
    save_checkpoint(writing(), folder, 3, RUN, ALONE)  # the next attempt is not disturbed by what lies there
    assert newest(folder) == 3


def test_a_marker_on_its_way_does_not_count(folder):
    (folder / "step-00000002" / MARKER).rename(folder / "step-00000002/committed.tmp")
    assert newest(folder) == 1


def test_a_removal_that_was_killed_leaves_no_checkpoint_that_looks_whole(folder, monkeypatch):
    def die(path):
        (path / "weights").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else die(path))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(writing(), folder, 3, RUN, ALONE)
    assert [path.name for path in committed_checkpoints(folder)] == ["step-00000002", "step-00000003"]
    assert newest(folder) == 3


CHANGES = {
    "changed": (lambda f: (f / "parts/more").write_text("evil"), r"parts/more changed since the"),
    "added": (lambda f: (f / "state-9").write_text("evil"), r"state-9 was added since the"),
    "added by the marker's name": (
        lambda f: (f / "parts" / MARKER).write_text("evil"),
        r"parts/committed\.json was added since the",
    ),
    "missing": (lambda f: (f / "weights").unlink(), r"weights is missing since the"),
    "link": (
        lambda f: ((f / "weights").rename(f.parent / "away"), (f / "weights").symlink_to(f.parent / "away")),
        r"weights: not a plain file",
    ),
    "linked folder": (lambda f: (f / "more").symlink_to(f.parent), r"more: not a plain file"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), r"pipe: not a plain file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_files_that_are_not_the_committed_ones_are_refused_before_they_are_opened(folder, name):
    change, problem = CHANGES[name]
    change(folder / "step-00000002")
    refuse(folder, problem + r".*Remove this folder to fall back")
    shutil.rmtree(folder / "step-00000002")
    assert newest(folder) == 1


def test_a_checkpoint_under_another_steps_name_is_refused(folder):
    (folder / "step-00000001").rename(folder / "step-00000009")
    refuse(folder, r"step-00000009: the folder was renamed from step 1 since the checkpoint was committed")


def test_folders_of_other_names_are_no_checkpoints(folder):
    for name in ("step-99999999999", "step-9", "step-0000000x"):
        shutil.copytree(folder / "step-00000002", folder / name)
    assert newest(folder) == 2


@pytest.mark.parametrize("text", ["", "{", '{"step": 2}', '{"step": "2"}', "[1]", '{"step": NaN}', V0])
def test_a_marker_that_is_none_is_refused(folder, text):
    (folder / "step-00000002" / MARKER).write_text(text)
    refuse(folder, r"no valid marker .*remove the folder to fall back")


def test_another_run_is_refused_with_both_values(folder):
    with pytest.raises(CheckpointError, match=r"seed: checkpoint has 1, run declares 2"):
        find_checkpoint(folder, {"seed": 2})


def test_the_marker_lists_every_file(folder):
    marker = json.loads((folder / "step-00000002" / MARKER).read_text())
    assert sorted(marker["files"]) == ["parts/more", "weights"]
    assert all(len(digest) == 64 for digest in marker["files"].values())
