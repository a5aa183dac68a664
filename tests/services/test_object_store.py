"""An S3 server over HTTP, and what its faults are called: cannot be read now, which is not damaged."""

import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from helpers.proxy import IS_FULL
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.errors import RunFileError, TideCacheError, UnreadableError
from tide_cache.inspecting.inspection import inspect
from tide_cache.locations import cache_path
from tide_cache.manifest import verify
from tide_cache.shards import FsspecFiles, publish, remote_files, store_faults

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # aiohttp leaves these to the collector
FILES = FsspecFiles()
COMMAND = Path(sys.executable).with_name("tide-cache")
REFUSED = r"cannot be read now: (Forbidden|Access Denied): the store refuses access: its key \(see AWS_ACCESS_KEY_ID"
SILENT = r"the server does not answer, or its address is wrong \(see FSSPEC_S3_ENDPOINT_URL or AWS_ENDPOINT_URL\)"


@pytest.fixture
def root(s3, numbers):
    root = cache_path(f"s3://bucket/objects-{next(numbers)}")
    FILES.create(root / "a", b"0123456789")
    return root


@pytest.fixture(scope="module")
def local(tmp_path_factory, build_values):
    folder = tmp_path_factory.mktemp("local") / "cache"
    build_cache(BuildRun.model_validate(build_values(folder)))
    return folder


@pytest.fixture
def remote(s3, numbers, local):
    """The files of a local build, as objects."""
    root = cache_path(f"s3://bucket/cache-{next(numbers)}")
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        place = root
        for part in path.relative_to(local).parts:
            place = place / part
        FILES.create(place, path.read_bytes())
    return root


def test_a_build_leaves_the_objects_of_a_local_one(s3, numbers, local, build_values):
    url = f"s3://bucket/built-{next(numbers)}"
    build_cache(BuildRun.model_validate(build_values(url)))
    system = fsspec.filesystem("s3", use_listings_cache=False, endpoint_url=s3.url)
    found = {name.partition(f"{url[5:]}/")[2]: system.cat_file(name) for name in system.find(url)}
    assert found == {p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    assert verify(cache_path(url), deep=True).ok


def test_a_store_that_ignores_conditions_is_refused_before_the_teacher_runs(s3, numbers, build_values, monkeypatch):
    s3.ways = {"unconditional"}
    url = f"s3://bucket/built-{next(numbers)}"
    run = BuildRun.model_validate(build_values(url))
    with pytest.raises(RunFileError, match=r"plan\.json: the store ignores conditional writes(?s:.*)SINGLE_WRITER=1"):
        build_cache(run)
    assert FILES.list_folder(cache_path(url)) == ["plan.json"]
    monkeypatch.setenv("TIDE_CACHE_SINGLE_WRITER", "1")
    build_cache(run)
    assert verify(cache_path(url)).ok


def test_a_single_writer_still_overwrites_nothing(s3, root, monkeypatch):
    s3.ways = {"unconditional"}
    monkeypatch.setenv("TIDE_CACHE_SINGLE_WRITER", "1")
    with pytest.raises(FileExistsError):
        FILES.create(root / "a", b"other")
    assert FILES.read(root / "a", 0, 20) == b"0123456789"


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("forbidden", REFUSED),
        ("rangeless", r"asked for 8 bytes from byte \d+, got \d+: the server ignores ranges"),
        ("short", r"cannot be read now: asked for \d+ bytes from byte \d+, got \d+|FlexibleChecksumError"),
    ],
)
def test_what_a_store_does_not_give_now_is_not_called_damaged(s3, remote, monkeypatch, way, message):
    monkeypatch.setattr(store_faults, "FIRST_WAIT_S", 0.01)
    s3.ways = {way}
    for use in (verify, inspect):
        if use is inspect and way != "forbidden":
            continue  # it reads documents alone
        with pytest.raises(UnreadableError, match=message) as caught:
            use(remote)
        assert "run the same command again; nothing says that it is damaged" in str(caught.value)
        assert caught.value.exit_code == 1
    s3.ways = set()
    assert verify(remote).ok


def test_what_is_damaged_is_still_called_so(s3, remote):
    shard = remote / "pairs" / "shard-000001.parquet"
    data = FILES.read(shard, 0, 1 << 20)
    FILES.replace(shard, data[:-3])
    report = verify(remote)
    assert [problem.file for problem in report.problems] == ["pairs/shard-000001.parquet"]


def test_a_refusal_to_write_is_told_with_the_stores_own_words(s3, root):
    s3.ways = {"read-only"}
    with pytest.raises(
        TideCacheError, match=r"/b: cannot be written: Access Denied: the store refuses access.*errno 13"
    ):
        publish(root / "b", b"data")
    s3.ways = {"forbidden"}  # looking whether the name is taken is refused too, and must not hide the first answer
    with pytest.raises(TideCacheError, match=r"/b: cannot be written: Access Denied: the store refuses access"):
        publish(root / "b", b"data")


def test_a_missing_key_names_the_variables(s3, root, monkeypatch):
    import botocore.credentials

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(botocore.credentials.SharedCredentialProvider, "load", lambda self: None)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3.url, "client_kwargs": {"region_name": "x-1"}})
    with pytest.raises(
        UnreadableError, match=r"no usable credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        FILES.size(root / "a")


def test_a_busy_store_is_asked_again_a_few_times(s3, root, monkeypatch):
    monkeypatch.setattr(store_faults, "FIRST_WAIT_S", 0.01)
    s3.ways, s3.num_busy = {"busy"}, 2
    assert FILES.read(root / "a", 2, 3) == b"234"
    s3.num_busy, before = 1000, s3.num_requests
    with pytest.raises(UnreadableError, match="Reduce your request rate"):
        FILES.read(root / "a", 2, 3)
    assert s3.num_requests - before == store_faults.MAX_ATTEMPTS


def test_a_server_that_is_down_or_hangs_is_given_up(s3, root, monkeypatch):
    for module in (store_faults, remote_files):
        monkeypatch.setattr(module, "SILENCE_S", 0.3)
    monkeypatch.setattr(store_faults, "GIVE_UP_S", 1.0)
    s3.ways = {"hung"}
    start_s = time.monotonic()
    with pytest.raises(UnreadableError, match=SILENT):
        FILES.read(root / "a", 0, 3)
    assert time.monotonic() - start_s < 30
    with pytest.raises(TideCacheError, match=rf"b: cannot be written: (ReadTimeout|FSTimeout)Error.*{SILENT}"):
        publish(root / "b", b"data")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(UnreadableError, match=rf"(EndpointConnection|ConnectTimeout|FSTimeout)Error.*{SILENT}"):
        FILES.list_folder(root)


def commands(url, tmp_path, values):
    run = BuildRun.model_validate(values)
    from tide_cache_cli.run_toml import run_toml

    (tmp_path / "build.toml").write_text(run_toml(run))
    tokenizer = values["student"]["tokenizer"]["path"]
    (tmp_path / "train.toml").write_text(
        f'[student]\nmax_length = 64\nblock_size = 8\ntokenizer = {{ path = "{tokenizer}" }}\n'
        "shape = { hidden_size = 16, intermediate_size = 16, num_layers = 1, num_heads = 1, num_kv_heads = 1 }\n"
        f'[data]\ncache = "{url}"\n[[objective]]\nkind = "kl"\n[train]\nout = "run"\nsteps = 1\ndevice = "cpu"\n'
    )
    return {
        "verify": ["verify", url],
        "inspect": ["inspect", url],
        "report": ["report", url, "--out", "report.html"],
        "export": ["export", url, "--view", "0", "--out", "view.parquet"],
        "train": ["train", "train.toml"],
        "resume": ["build-teacher-shards", "build.toml"],
    }


@pytest.mark.parametrize(
    "name", ["verify", "inspect", "report", "export", "train", "resume"] if IS_FULL else ["verify"]
)
def test_every_command_ends_with_1_and_says_what_to_fix(s3, remote, tmp_path, build_values, name):
    s3.ways = {"forbidden"}
    arguments = commands(str(remote), tmp_path, build_values(str(remote)))[name]
    done = subprocess.run([COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "the store refuses access: its key (see AWS_ACCESS_KEY_ID" in done.stderr, done.stderr
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not IS_FULL, reason="takes half a minute: TIDE_CACHE_FAULTS=full")
def test_a_dead_connection_is_given_up_within_30_s(s3, root):
    s3.ways = {"hung"}
    start_s = time.monotonic()
    with pytest.raises(UnreadableError, match=SILENT):
        FILES.read(root / "a", 0, 3)
    assert time.monotonic() - start_s < 30
