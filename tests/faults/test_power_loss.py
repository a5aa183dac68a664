"""When the power goes, what counts as committed is whole, a rerun completes the rest, and what is finished stays."""

import contextlib
from pathlib import Path

import pytest

from helpers.campaign import broken_promises, encode_shards, record, seeded, trials, work
from helpers.crash_files import CrashFiles, KilledError

ROOT = Path("cache")


@pytest.fixture(scope="module")
def shards():
    return encode_shards()


@pytest.fixture(scope="module")
def undisturbed(shards):
    files = CrashFiles()
    work(ROOT, shards, files)
    return files.files(), files.changes


def run_until(files, shards, lives, order):
    """Let a worker make so many changes; then it is dead."""
    files.lives, files.changes = lives, 0
    with contextlib.suppress(KilledError):
        work(ROOT, shards, files, order)
    files.lives = None


def test_a_power_loss_at_any_moment_keeps_every_promise(shards, undisturbed):
    expected, num_changes = undisturbed
    num_seeds = trials(quick=60, full=1000)
    losses = committed = 0
    for seed, random in seeded(num_seeds):
        files = CrashFiles()
        for _ in range(random.randint(1, 3)):
            for _ in range(random.randint(1, 2)):  # a worker may be killed before, and another takes over
                run_until(files, shards, random.randrange(num_changes), random.randrange(3))
            files.lose_power(random)
            losses += 1
            names = [name.removeprefix("cache/") for name in files.files()]
            assert not broken_promises(ROOT, names, files), f"seed {seed}"
            committed += sum("/shard-" in name and name.endswith(".json") for name in names)
        work(ROOT, shards, files)
        assert files.files() == expected, f"seed {seed}: another tree"
        files.lose_power(random)
        assert files.files() == expected, f"seed {seed}: a finished cache lost something"
    assert committed > num_seeds
    record("power_loss", seeds=num_seeds, losses=losses, committed_shards_checked=committed, broken_promises=0)


class HastyFiles(CrashFiles):
    """Gives a file its name before its bytes are durable."""

    def write_new(self, path, data):
        super().write_new(path, data)
        self._find(path).is_synced = False


def test_a_writer_that_does_not_sync_is_found_out(shards, undisturbed):
    """A campaign on a file system that keeps everything would prove nothing."""
    found = 0
    for _, random in seeded(40):
        files = HastyFiles()
        run_until(files, shards, random.randrange(undisturbed[1]), 0)
        files.lose_power(random)
        names = [name.removeprefix("cache/") for name in files.files()]
        try:
            found += bool(broken_promises(ROOT, names, files))
        except ValueError:  # a torn commit record is no JSON
            found += 1
    assert found > 5
