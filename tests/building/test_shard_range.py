"""Ranges of several runs: what A:B, K/N and a launcher's variables mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.building.shard_range import check_shard_range, shard_range
from tide_cache.errors import RunFileError

ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}


@given(st.integers(1, 50), st.integers(1, 60))
def test_parts_are_even_and_cover_the_plan_once(num_shards, size):
    parts = [shard_range(f"{rank}/{size}", num_shards, {}) for rank in range(size)]
    assert [shard for part in parts for shard in part] == list(range(num_shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, range(0, 3)),
        (ARRAY, range(6, 9)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_STEP": "2"}, range(6, 9)),
        ({**ARRAY, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}, range(7, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, range(6, 12)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, range(6, 12)),
    ],
)
def test_a_launcher_tells_the_part(environment, want):
    assert shard_range("auto", 12, environment) == want


def test_a_range_is_half_open():
    assert shard_range("2:5", 5, {}) == range(2, 5)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0:11", {}, r"--shard-range 0:11: the plan has 10 shards; expected A:B with 0 <= A < B <= 10"),
        ("4:4", {}, "the plan has 10 shards"),
        ("2/2", {}, r"--shard-range '2/2': expected A:B .* K/N with K < N"),
        ("half", {}, "--shard-range 'half': expected"),
        ("auto", {}, "found neither SLURM_ARRAY_TASK_ID nor RANK and WORLD_SIZE in the environment"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "found SLURM_ARRAY_TASK_COUNT='', expected a whole number"),
        ("auto", {**ARRAY, "SLURM_ARRAY_TASK_ID": "9"}, "this is element 9 of a Slurm array of 4 ids from 1 to 4"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "the environment makes this process 2 of 2"),
        ("auto", {"RANK": "one", "WORLD_SIZE": "2"}, "found RANK='one', expected a whole number"),
    ],
)
def test_what_cannot_be_a_range_is_refused(text, environment, message):
    with pytest.raises(RunFileError, match=message):
        shard_range(text, 10, environment)


def slurm(ids):
    """Return each element's variables as Slurm 22.05 sets them: the step of a list is 1, whatever its ids are."""
    step = ids.step if isinstance(ids, range) else 1
    of_all = {"MIN": min(ids), "MAX": max(ids), "STEP": step, "COUNT": len(ids)}
    for task in ids:
        yield {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in {**of_all, "ID": task}.items()}


@pytest.mark.parametrize("ids", [range(0, 4), range(1, 5), range(0, 7, 2), range(3, 12, 4), range(2, 3), [1, 2, 3]])
def test_the_elements_of_an_array_cover_the_plan_once(ids):
    parts = [shard_range("auto", 10, environment) for environment in slurm(ids)]
    assert [shard for part in parts for shard in part] == list(range(10))


@pytest.mark.parametrize("ids", [[1, 3], [0, 1, 3], [0, 1, 4], [0, 2, 4, 7], [0, 5]])
def test_every_element_of_a_list_is_refused_before_the_corpus_is_read(ids):
    for environment in slurm(ids):
        with pytest.raises(
            RunFileError, match=r"a list such as --array=1,3.*Use --shard-range \$SLURM_ARRAY_TASK_ID/N"
        ):
            check_shard_range("auto", environment)


def test_a_form_that_is_none_is_refused_before_the_corpus_is_read():
    with pytest.raises(RunFileError, match=r"--shard-range 'half': expected A:B"):
        check_shard_range("half", {})
    for text in ("0:99", "1/2"):
        check_shard_range(text, {})
