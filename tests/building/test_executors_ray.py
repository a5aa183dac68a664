"""Ray actors on a cluster of two nodes: one process is killed, one node is taken away, and at last the head is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.fresh import IS_FULL
from tide_cache.building.driver import build_cache
from tide_cache.building.executors import RayActors, ray_actors
from tide_cache.errors import RunFileError, TideCacheError
from tide_cache_cli.run_toml import run_toml

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Ray leaves sockets and log files to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
in_full = pytest.mark.skipif(not IS_FULL, reason="a cluster takes half a minute of both cores: TIDE_CACHE_TESTS=full")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster():
    """A head with one core; a node with another is added by whoever needs it."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tide-cache[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield made
    made.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)


def actor_pids():
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if title.startswith(b"ray::ShardActor"):
            found.append(int(folder.name))
    return found


@in_full
def test_a_killed_actor_and_a_lost_node_do_not_change_a_byte(tmp_path, run_in, undisturbed, tree, cluster):
    second = cluster.add_node(**NODE)
    harm = []

    def disturb(progress):
        if progress.views_done and not harm:
            harm.append("an actor")
            os.kill(actor_pids()[0], signal.SIGKILL)
        elif progress.shards_done == 2 and len(harm) == 1:
            harm.append("a node")
            cluster.remove_node(second)

    seen = []
    summary = build_cache(
        run_in(tmp_path / "cache"),
        lambda progress: (seen.append(progress), disturb(progress)),
        RayActors(2, cluster.address),
    )
    assert harm == ["an actor", "a node"]
    # A node that is lost while it writes leaves a temporary file, which the next build removes.
    found = {name: digest for name, digest in tree(tmp_path / "cache").items() if not name.endswith(".tmp")}
    assert found == tree(undisturbed)
    assert summary.num_shards == seen[-1].shards_done == 5
    assert seen[-1].views_done == seen[-1].num_views
    deadline_s = time.monotonic() + 120
    while actor_pids():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@in_full
def test_a_cluster_without_a_place_is_given_up(tmp_path, run_in, cluster, monkeypatch):
    monkeypatch.setattr(ray_actors, "PLACING_S", 1.0)
    monkeypatch.setattr(ray_actors._Crew, "add_actor", lambda crew: None)
    with pytest.raises(TideCacheError, match=r"had no place for a worker in 1 s: one needs .'num_cpus': 1"):
        build_cache(run_in(tmp_path / "cache"), executor=RayActors(1, cluster.address))


@in_full
def test_a_cluster_without_a_gpu_is_refused_where_one_is_asked_for(tmp_path, run_in, cluster):
    with pytest.raises(RunFileError, match=r"teacher.device cuda: the Ray cluster has no GPU; use 'auto' or 'cpu'"):
        build_cache(run_in(tmp_path / "cache", teacher__device="cuda"), executor=RayActors(1, cluster.address))


@in_full
def test_a_lost_head_is_told_and_what_is_committed_stays(tmp_path, run_in, cluster):
    """The last one: nothing repairs the cluster afterwards."""
    out = tmp_path / "cache"
    run = run_in(out, views__num_views=400, build__samples_per_shard=2)
    (tmp_path / "run.toml").write_text(run_toml(run))
    command = [Path(sys.executable).with_name("tide-cache"), "build-teacher-shards", "run.toml", "--json"]
    command += ["--executor", "ray", "--ray-address", cluster.address]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not any(out.glob("signals/plain/*.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        for entry in cluster.head_node.all_processes["gcs_server"]:
            entry.process.kill()
        stdout, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, err
    assert stdout == ""
    assert re.search(r"error: The Ray cluster is lost: its head at \S+ does not answer", err)
    assert "Committed shards stay." in err
    assert "Traceback" not in err
    records = list(out.glob("signals/plain/*.json"))
    assert records
    assert all(json.loads(path.read_text())["table"] == "plain" for path in records)


@in_full
def test_without_an_address_a_cluster_starts_here_and_ends_with_the_build(tmp_path, run_in, undisturbed, tree):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tide-cache[ray]'")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    build_cache(run_in(tmp_path / "cache"), executor=RayActors(1))
    assert tree(tmp_path / "cache") == tree(undisturbed)
    assert not ray.is_initialized()
    assert before == {number: signal.getsignal(number) for number in before}, "signals stay with those who had them"


def test_an_address_where_nothing_answers_is_refused_at_once(tmp_path, run_in):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tide-cache[ray]'")
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(TideCacheError, match=f"--ray-address {address}: nothing answers there; expected HOST:PORT"):
            build_cache(run_in(tmp_path / "cache"), executor=RayActors(1, address))
    assert not (tmp_path / "cache").exists()


def test_without_ray_the_line_that_installs_it_is_told(tmp_path, run_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunFileError, match=r"pip install 'tide-cache\[ray\]'"):
        build_cache(run_in(tmp_path / "cache"), executor=RayActors(1))
    assert not (tmp_path / "cache").exists()
