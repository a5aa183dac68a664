"""Every reader tells a fault of the machine from a damaged file: EACCES and EIO exit with 1, and accuse nobody's bytes.

The tests run as root, for whom permissions are no obstacle: the descriptor or the path is made to fail in the system
call, or, where a library opens files by itself, the process gives up its rights for the while.
"""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tide_cache.corpus import open_corpus
from tide_cache.disk import told_refusal, writing
from tide_cache.errors import (
    CheckpointError,
    CorpusError,
    EvaluationError,
    ModelError,
    RunFolderError,
    UnreadableError,
    WriteError,
)
from tide_cache.hub import open_repository
from tide_cache.modeling.checkpoint import read_provenance
from tide_cache.modeling.fingerprint import checkpoint_fingerprint
from tide_cache.modeling.gguf import GGUFFile, find_gguf, unpack_gguf
from tide_cache.modeling.safetensors_loading import INDEX, SINGLE, load_tensors, stored_dtype, weight_files
from tide_cache.pairing import TextTokenizer
from tide_cache.reporting.runs import read_run
from tide_cache.training.checkpoints import MARKER, Marker, committed_checkpoints, find_checkpoint
from tide_cache.training.metrics import read_metrics
from tide_cache.unreadable import is_there, require_readable, told_apart

NOBODY = 65534


@contextmanager
def as_nobody():
    """The process has no rights of root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@contextmanager
def closed(path):
    """Nobody may read a file, or enter a folder, and the process is nobody."""
    before = path.stat().st_mode
    path.chmod(0)
    try:
        with as_nobody():
            yield
    finally:
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


def test_what_a_library_says_of_a_machines_fault_is_told_apart(tmp_path):
    def in_rust():
        with told_apart(tmp_path / "tokenizer.json"):
            raise Exception("Input/output error (os error 5)")

    def wrapped():
        with told_apart(tmp_path):
            try:
                (tmp_path / "file").touch()
                raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "file"))
            except PermissionError as error:
                raise OSError("Can't load tokenizer") from error

    refused_now(in_rust, "tokenizer.json", errno.EIO)
    refused_now(wrapped, "/file")


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


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", ".")


@pytest.fixture
def tokenizer(place, vocabularies):
    shutil.copytree(vocabularies.first, place / "tokenizer")
    (place / "tokenizer").chmod(0o755)
    return place / "tokenizer"


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_tokenizer(tokenizer, name):
    with closed(tokenizer / name):
        refused_now(lambda: TextTokenizer.load(str(tokenizer)), "tokenizer")
    TextTokenizer.load(str(tokenizer))


def test_a_chat_template_of_its_own_and_a_tokenizer_that_is_copied(tokenizer, place):
    template = place / "chat.jinja"
    template.write_text("{{ messages[0].content }}")
    with closed(template):
        refused_now(lambda: TextTokenizer.load(str(tokenizer), chat_template=template), "chat.jinja")
    loaded, out = TextTokenizer.load(str(tokenizer)), place / "out"
    out.mkdir()
    out.chmod(0o777)

    def save():
        with writing(out):
            loaded.save(out)

    with closed(tokenizer / "tokenizer.json"):
        refused_now(save, "tokenizer/tokenizer.json")
    out.chmod(0o500)
    with as_nobody(), pytest.raises(WriteError, match=r"out.*cannot be written: Permission denied"):
        save()


def test_data_of_tasks(place):
    from tide_cache.evaluation.harness.local_data import Wanted, find_files, read_rows

    wanted = Wanted("owner/name", None, "test")
    (place / "name").mkdir()
    file = place / "name" / "test-00000-of-00001.jsonl"
    file.write_text("{}")
    assert find_files(place, [wanted])[wanted] == (file,)
    for shut in (place / "name", place):
        with closed(shut):
            refused_now(lambda: find_files(place, [wanted]))
    with closed(file):
        refused_now(lambda: read_rows([file]), file.name)
    file.write_text("{")
    with pytest.raises(EvaluationError, match=r"cannot be read: .*fetch it again"):
        read_rows([file])


def test_a_gguf_file(place):
    file = place / "model.gguf"
    file.write_bytes(b"GGUF")
    with closed(file):
        assert find_gguf(str(place)) == GGUFFile(file)
        refused_now(lambda: unpack_gguf(file, place / "out"), "model.gguf")
    with closed(place):
        refused_now(lambda: find_gguf(str(place)))
        refused_now(lambda: find_gguf(str(file)))


@pytest.mark.parametrize("name", [".", "models--owner--name/refs/main"])
def test_what_is_kept_of_a_hub(place, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(place / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    (place / "models--owner--name" / "refs").mkdir(parents=True)
    (place / "models--owner--name" / "refs" / "main").write_text(commit)
    (place / "models--owner--name" / "snapshots" / commit).mkdir(parents=True)
    assert open_repository("owner/name").commit == commit
    with closed(place / name), pytest.raises(UnreadableError, match=r"errno 13.*set HF_HOME") as caught:
        open_repository("owner/name")
    assert str(caught.value).startswith(str(place))


def test_a_folder_whose_place_nobody_may_enter_is_no_name_of_a_hub(place):
    (place / "shut" / "model").mkdir(parents=True)
    with closed(place / "shut"):
        refused_now(lambda: open_repository(str(place / "shut" / "model")), "shut/model")


def test_the_command_line_tells_reading_from_writing(place):
    (place / "file").write_text("")
    (place / "folder").mkdir()

    def told(act):
        with pytest.raises(OSError, match=r".") as caught:
            act()
        return told_refusal(caught.value)

    with closed(place / "file"):
        assert "file: cannot be read now: Permission denied (errno 13)" in told((place / "file").read_text)
    with closed(place / "folder"):
        assert "cannot be read now: Permission denied" in told((place / "folder" / "file").read_text)
    with as_nobody():
        assert "new: cannot be written: Permission denied" in told((place / "new").touch)
        assert "file: cannot be written: Permission denied" in told(lambda: (place / "file").write_text(""))
    assert "/x: cannot be read now: Input/output error (errno 5)" in told_refusal(
        OSError(errno.EIO, "Input/output error", "/x")
    )
    assert "/x: cannot be written: Read-only" in told_refusal(OSError(errno.EROFS, "Read-only file system", "/x"))


FAILING_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static int fails(int fd, off_t at) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = at < 0 ? -1 : readlink(link, path, sizeof path - 1);
  return n > 0 && (path[n] = 0, strstr(path, "/failing-disk/") != 0);
}
ssize_t read(int fd, void *to, size_t n) {
  ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
  if (fails(fd, lseek(fd, 0, SEEK_CUR) - 8)) { errno = EIO; return -1; }
  return real(fd, to, n);
}
ssize_t pread(int fd, void *to, size_t n, off_t at) {
  ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
  if (fails(fd, at <= 4 ? 0 : -1)) { errno = EIO; return -1; }
  return real(fd, to, n, at);
}
ssize_t pread64(int fd, void *to, size_t n, off64_t at) { return pread(fd, to, n, at); }
"""
"""A disk that fails in the middle: behind the first bytes of a file that is read from its beginning, and at the first
row group, once the footer was read."""

READS = """
import json, sys
from pathlib import Path
from tide_cache.corpus import open_corpus
from tide_cache.errors import TideCacheError
disk, said = Path(sys.argv[1]), {}
for file in disk.iterdir():
    try:
        open_corpus(file.name, folder=disk)
    except TideCacheError as error:
        said[file.name] = [type(error).__name__, str(error)]
json.dump(said, sys.stdout)
"""


def test_a_disk_that_fails_in_the_middle_of_a_file(tmp_path):
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("gcc is not installed")
    disk = tmp_path / "failing-disk"
    disk.mkdir()
    kinds = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.txt", "a.parquet"]
    for name in kinds:
        write_corpus(disk / name)
    (tmp_path / "disk.c").write_text(FAILING_DISK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "disk.so", tmp_path / "disk.c", "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", READS, disk], capture_output=True, text=True, timeout=300,
        env={**os.environ, "LD_PRELOAD": str(tmp_path / "disk.so"), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert sorted(said) == sorted(kinds)
    for name, (kind, message) in said.items():
        assert kind == "UnreadableError", (name, message)
        assert "cannot be read now: Input/output error (errno 5)" in message, name
