"""The signal `projected` from a build to a loss: `kl` across tokenizers, alone and in a mix."""

import json

import numpy as np
import pytest

from helpers.teacher_examples import write_tiny
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.collate import collate
from tide_cache.manifest import Manifest, verify
from tide_cache.pairing import TextTokenizer
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train

KINDS = ("truth", "chunks", "projected")


@pytest.fixture(scope="module")
def cache(tmp_path_factory, build_values, vocabularies):
    """Another tokenizer's teacher, both passes, packed."""
    root = tmp_path_factory.mktemp("projected")
    tokenizer = TextTokenizer.load(str(vocabularies.first))
    write_tiny(root / "teacher", tokenizer)
    values = build_values(
        root / "cache", teacher__model=str(root / "teacher"), signals__kinds=KINDS, signals__codec="compact",
        views__num_views=2, build__passes=("plain", "compdemo"),
    )  # fmt: skip
    build_cache(BuildRun.model_validate(values))
    return root / "cache"


def run_on(data, model, out, objective=({"kind": "ce"}, {"kind": "kl"})):
    section = {"out": str(out), "steps": 2, "global_batch": 8, "micro_batch": 8, "device": "cpu"}
    section |= {"precision": "float32", "checkpoint_every": 0, "log_every": 1}
    values = {"student": {"model": str(model)}, "data": data, "objective": objective, "train": section}
    return TrainRun.model_validate(values)


def test_the_cache_is_whole_and_every_chunk_token_may_have_candidates(cache):
    assert verify(cache, deep=True).ok
    manifest = Manifest.load(cache)
    assert json.loads((cache / "manifest.json").read_text())["format_version"] == 3
    for name in ("plain", "compdemo"):
        source = CacheSource(cache, manifest, signal_pass=name)
        for record in source.records(range(source.groups.num_samples), epoch=1):
            chunk_tokens = np.zeros(len(record.pair.student_ids_L), bool)
            for start, end in record.pair.chunks_C4[record.signal.chunks.chunks_A, 2:]:
                chunk_tokens[start:end] = True
            masked = np.flatnonzero(record.view.is_student_masked_L)
            assert chunk_tokens[masked[record.signal.projected.rows_R]].all()


def test_kl_trains_from_it_and_its_rows_are_the_projected_ones(cache, tiny_teacher, tmp_path):
    run = run_on({"cache": str(cache)}, tiny_teacher, tmp_path / "run")
    train(run)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    assert all(np.isfinite(loss["loss"]) for loss in losses if "loss" in loss)


def test_a_mix_reads_either_signal(cache, tiny_cache, tiny_teacher, tmp_path):
    mix = {"mix": [{"cache": str(tiny_cache)}, {"cache": str(cache), "signal_pass": "compdemo"}]}
    prepared = prepare(run_on(mix, tiny_teacher, tmp_path / "mix"), World(0, 1, 0), resume=False)
    sizes = prepared.source.groups.num_samples
    records = prepared.source.records([0, 1, sizes - 2, sizes - 1], 0)
    together = collate(records, prepared.layout)[1]
    alone = [collate([record], prepared.layout)[1] for record in records]
    assert together.topk.has_topk_N.tolist() == [has for one in alone for has in one.topk.has_topk_N.tolist()]
    assert all(one.topk.has_topk_N.any() for one in alone)
