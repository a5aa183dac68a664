"""Every reader tells a fault of the machine from a damaged file: EACCES and EIO exit with 1, and accuse nobody's bytes.

The tests run as root, for whom permissions are no obstacle: the descriptor or the path is made to fail in the system
call, or, where a library opens files by itself, the process gives up its rights for the while.
"""

import errno
import gzip
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tide_cache.corpus import open_corpus
from tide_cache.errors import CheckpointError, CorpusError, ModelError, RunFolderError, UnreadableError, WriteError
from tide_cache.modeling.checkpoint import read_provenance
from tide_cache.modeling.fingerprint import checkpoint_fingerprint
from tide_cache.modeling.safetensors_loading import INDEX, SINGLE, load_tensors, stored_dtype, weight_files
from tide_cache.reporting.runs import read_run
from tide_cache.training.checkpoints import MARKER, Marker, committed_checkpoints, find_checkpoint
from tide_cache.training.metrics import read_metrics
from tide_cache.unreadable import is_there, require_readable, told_apart

NOBODY = 65534


@contextmanager
def closed(path):
    """Nobody may read a file, or enter a folder, and the process is nobody."""
    before = path.stat().st_mode
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.chmod(before)


@pytest.fixture
def place():
    """A folder that others may enter, as pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="unreadable-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def refused_now(look, name="", code=errno.EACCES):
    with pytest.raises(UnreadableError) as caught:
        look()
    assert f"cannot be read now: {os.strerror(code)} (errno {code})" in str(caught.value)
    assert "nothing says that it is damaged" in str(caught.value)
    assert name in str(caught.value).split(": cannot")[0]
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT])
def test_an_errno_of_the_machine_is_told_apart(tmp_path, code):
    def look():
        with told_apart(tmp_path):
            raise OSError(code, os.strerror(code), str(tmp_path / "file"))

    refused_now(look, "/file", code)


@pytest.mark.parametrize(
    "error",
    [
        OSError("Not a gzipped file"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=repr,
)
def test_what_is_the_files_or_a_writers_own_stays_as_it_is(tmp_path, error):
    with pytest.raises(OSError, match=r".") as caught, told_apart(tmp_path):
        raise error
    assert caught.value is error


def test_a_path_behind_a_closed_folder_is_not_called_missing(place):
    (place / "folder").mkdir()
    with closed(place / "folder"):
        refused_now(lambda: is_there(place / "folder" / "file"), "folder/file")
        refused_now(lambda: require_readable(place / "folder" / "file"), "folder/file")
    assert not is_there(place / "folder" / "file")
    require_readable(place / "folder" / "file")
    require_readable(place / "folder")


def test_weights(place):
    """safetensors calls what it may not open missing."""
    save_file({"x": torch.zeros(3)}, place / SINGLE)
    (place / "config.json").write_text("{}")
    for look in (
        lambda: load_tensors(place, {"x": torch.zeros(3)}),
        lambda: stored_dtype(place),
        lambda: checkpoint_fingerprint(place),
    ):
        with closed(place / SINGLE):
            refused_now(look, SINGLE)
        look()
        with closed(place):
            refused_now(look)
    (place / SINGLE).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="the weights cannot be read"):
        stored_dtype(place)


def test_an_index_of_weights_and_a_provenance(place):
    (place / INDEX).write_text('{"weight_map": {}}')
    (place / "tide_cache.json").write_text("{}")
    with closed(place / INDEX):
        refused_now(lambda: weight_files(place), INDEX)
    with closed(place / "tide_cache.json"):
        refused_now(lambda: read_provenance(place), "tide_cache.json")


@pytest.fixture
def checkpoint(place):
    folder = place / "step-00000003"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "state").write_text("")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    marker = Marker(version=1, step=3, world_size=1, run={}, files={"deep/state": empty})
    (folder / MARKER).write_text(marker.model_dump_json())
    assert find_checkpoint(place, {}).step == 3
    return folder


@pytest.mark.parametrize("name", [MARKER, "deep/state", "deep", ".", ".."])
def test_a_training_checkpoint(checkpoint, name):
    with closed(checkpoint / name):
        refused_now(lambda: find_checkpoint(checkpoint.parent, {}))
    if name in (".", ".."):
        with closed(checkpoint / name):
            refused_now(lambda: committed_checkpoints(checkpoint.parent))


def test_a_checkpoint_that_really_is_damaged_is_still_refused(checkpoint):
    (checkpoint / "deep" / "state").write_text("more")
    with pytest.raises(CheckpointError, match="deep/state changed since"):
        find_checkpoint(checkpoint.parent, {})
    (checkpoint / MARKER).write_text("{")
    with pytest.raises(CheckpointError, match="no valid marker"):
        find_checkpoint(checkpoint.parent, {})


def test_a_runs_files(place):
    (place / "run.json").write_text(json.dumps({}))
    (place / "metrics.jsonl").write_text("")
    with closed(place / "run.json"):
        refused_now(lambda: read_run(place), "run.json")
    with closed(place / "metrics.jsonl"):
        refused_now(lambda: read_metrics(place / "metrics.jsonl"), "metrics.jsonl")
        refused_now(lambda: read_run(place), "metrics.jsonl")
    with closed(place):
        refused_now(lambda: read_run(place), "run.json")
        refused_now(lambda: read_metrics(place / "metrics.jsonl"))
    with pytest.raises(RunFolderError, match=r"run\.json: cannot be read: No such file"):
        read_run(place / "nowhere")


ROW = {"question": "q", "answer": "a"}


def write_corpus(path):
    line = json.dumps(ROW)
    match path.suffixes[-1]:
        case ".gz":
            path.write_bytes(gzip.compress(line.encode()))
        case ".zst":
            with pa.output_stream(str(path), compression="zstd") as stream:
                stream.write(line.encode())
        case ".parquet":
            pq.write_table(pa.table({key: [value] for key, value in ROW.items()}), path)
        case ".json":
            path.write_text(f"[{line}]")
        case _:
            path.write_text(line)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.txt", "a.parquet"])
def test_a_corpus_of_each_kind(place, name):
    write_corpus(place / name)
    for spec in (name, "."):
        for shut in (place / name, place):
            with closed(shut):
                refused_now(lambda spec=spec: open_corpus(spec, folder=place))
        assert len(open_corpus(spec, folder=place)) == 1
    (place / name).write_bytes(b"\xff{")
    with pytest.raises(CorpusError):
        open_corpus(name, folder=place)


def test_a_folder_inside_a_corpus_is_not_passed_over(place):
    (place / "deep").mkdir()
    write_corpus(place / "train.jsonl")
    write_corpus(place / "deep" / "train.jsonl")
    with closed(place / "deep"):
        refused_now(lambda: open_corpus(".[train:]", folder=place), "deep")


def test_a_saved_dataset(place):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([ROW]).save_to_disk(str(place / "saved"))
    for name in (".", "state.json", "data-00000-of-00001.arrow"):
        with closed(place / "saved" / name):
            refused_now(lambda: open_corpus("./saved", folder=place), "saved")
    assert len(open_corpus("./saved", folder=place)) == 1


def test_a_device_that_fails_under_a_corpus(tmp_path):
    """`/proc/self/mem` opens, and gives EIO for what is not mapped."""
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    refused_now(lambda: open_corpus("a.jsonl", folder=tmp_path), "a.jsonl", errno.EIO)
    (tmp_path / "a.json").symlink_to("/proc/self/mem")
    refused_now(lambda: open_corpus("a.json", folder=tmp_path), "a.json", errno.EIO)


def test_no_room_for_the_normalised_corpus_is_no_fault_of_the_corpus(tmp_path, monkeypatch):
    write_corpus(tmp_path / "a.jsonl")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    monkeypatch.setenv("TMPDIR", "/proc/none")
    with pytest.raises(WriteError, match=r"^/proc/none: cannot hold the normalised corpus: .*set TMPDIR") as caught:
        open_corpus("a.jsonl", folder=tmp_path)
    assert caught.value.exit_code == 1
