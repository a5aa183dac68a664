"""A teacher that says something impossible is refused with sample and view, and nothing of the shard is published."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.campaign import record, seeded, tree, trials
from tide_cache.building.prepare import prepare_build
from tide_cache.building.shard import build_shard
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.errors import TeacherOutputError
from tide_cache.manifest import CacheFolder
from tide_cache.records import TeacherSignal

VOCAB = 1 << 20


def changed(array, at, value):
    result = array.copy()
    result[at] = value
    return result


def with_topk(signal, **changes):
    return replace(signal, topk=replace(signal.topk, **changes))


FAULTS: dict[str, Callable[[TeacherSignal], TeacherSignal]] = {
    "NaN": lambda s: replace(s, truth_logprobs_N=changed(s.truth_logprobs_N, 0, np.nan)),
    "minus infinity": lambda s: replace(s, truth_logprobs_N=changed(s.truth_logprobs_N, -1, -np.inf)),
    "a log-prob above zero": lambda s: replace(s, truth_logprobs_N=changed(s.truth_logprobs_N, 0, 0.5)),
    "NaN among kept ids": lambda s: with_topk(s, logprobs_E=changed(s.topk.logprobs_E, 0, np.nan)),
    "an infinite partition": lambda s: with_topk(s, log_partition_RT=changed(s.topk.log_partition_RT, (0, 1), np.inf)),
    "NaN in a tail": lambda s: with_topk(s, log_tail_RT=changed(s.topk.log_tail_RT, (0, 0), np.nan)),
    "mass above 1": lambda s: with_topk(s, log_tail_RT=changed(s.topk.log_tail_RT, (0, 0), 0.0)),
    "mass below 1": lambda s: with_topk(s, log_tail_RT=changed(s.topk.log_tail_RT, (0, 0), -np.inf)),
    "an id that is kept twice": lambda s: with_topk(s, ids_E=changed(s.topk.ids_E, 1, s.topk.ids_E[0])),
    "an id past the vocabulary": lambda s: with_topk(s, ids_E=changed(s.topk.ids_E, 0, VOCAB)),
}


class FaultyTeacher:
    """The teacher, wrong about one view."""

    def __init__(self, teacher, random, fault):
        self._teacher, self._random, self._fault = teacher, random, fault
        self.sample_id, self.view = "", -1

    def signals(self, pairs, views, on_views):
        result = self._teacher.signals(pairs, views, on_views)
        able = [
            (i, view)
            for i, signals in enumerate(result)
            for view, signal in enumerate(signals)
            if len(signal.topk.counts_R) and signal.topk.counts_R[0] > 1
        ]
        sample, self.view = self._random.choice(able)
        self.sample_id = pairs[sample].sample_id
        result[sample][self.view] = self._fault(result[sample][self.view])
        return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, build_values):
    run = BuildRun.model_validate(build_values(tmp_path_factory.mktemp("faulty") / "cache", signals__top_p=0.9))
    build = prepare_build(run)
    return build, load_teacher(run, build, "cpu")


def test_an_impossible_value_is_refused_and_nothing_of_the_shard_is_published(prepared, tmp_path):
    build, teacher = prepared
    num_trials = trials(quick=2, full=25)
    for name, fault in FAULTS.items():
        for seed, random in seeded(num_trials):
            where = f"{name}, seed {seed}"
            folder = CacheFolder(tmp_path / f"{name}-{seed}")
            folder.begin(build.identity, build.plan, build.passes)
            faulty = FaultyTeacher(teacher, random, fault)
            with pytest.raises(TeacherOutputError) as caught:
                build_shard(build, faulty, folder, random.randrange(build.plan.num_shards), lambda _: None)
            message = str(caught.value)
            assert message.startswith(f"sample {faulty.sample_id!r}, view {faulty.view}, "), where
            assert "Nothing of this shard was published." in message, where
            assert "run the same command again" in message, where
            assert not [path for path in tree(folder.root) if path.startswith("signals/")], where
    record("teacher_values", kinds=len(FAULTS), trials=len(FAULTS) * num_trials, refused=len(FAULTS) * num_trials)
