"""A cache from a preprocessed set: plan, build, verify, train and export as from conversations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tide_cache.building.driver import build_cache
from tide_cache.building.planning import plan_build
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.demo.vocabularies import Vocabularies
from tide_cache.errors import CacheMismatchError, CorpusError, RunFileError
from tide_cache.manifest import Manifest, verify
from tide_cache.pairing import SamplePairer, TextTokenizer
from tide_cache.records import SamplePair
from tide_cache.training.run import train
from tide_cache_cli.main import app

Tree = Callable[[Path], dict[str, str]]
LENGTH = 64


@pytest.fixture(scope="module")
def own_pairs(corpus_file: Path, vocabularies: Vocabularies) -> list[SamplePair]:
    """The conversations as pairing makes samples of them, unfilled."""
    teacher, student = (TextTokenizer.load(str(path)) for path in (vocabularies.second, vocabularies.first))
    pairer = SamplePairer(
        teacher, student, teacher_max_length=LENGTH, student_max_length=LENGTH, student_block_size=8,
        fill_last_block=False,
    )  # fmt: skip
    return pairer.pair_many(list(open_corpus(corpus_file.name, folder=corpus_file.parent))).pairs


@pytest.fixture(scope="module")
def cross_set(own_pairs: list[SamplePair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, written as the reference's preprocessing would: one range for the answer, and a discarded row."""
    path = tmp_path_factory.mktemp("preprocessed") / "set.jsonl"
    rows = [set_row(pair) for pair in own_pairs]
    rows.append({**rows[0], "_discard": True})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def set_row(pair: SamplePair) -> dict[str, Any]:
    ids = pair.student_ids_L.tolist()
    chunks_C4 = pair.chunks_C4[pair.is_distillable_C]
    answer = [int(chunks_C4[0, 0]), int(chunks_C4[-1, 1]), int(chunks_C4[0, 2]), int(chunks_C4[-1, 3])]
    return {
        "input_ids": ids,
        "labels": [i if is_supervised else -100 for i, is_supervised in zip(ids, pair.is_supervised_L, strict=True)],
        "teacher_input_ids": pair.teacher_ids_M.tolist(),
        "ranges": [answer],
        "_discard": False,
    }


@pytest.fixture(scope="module")
def run_on(build_values: Callable[..., dict[str, Any]], cross_set: Path) -> Callable[..., BuildRun]:
    def make(out: Path, **changes: Any) -> BuildRun:
        corpus = {"spec": str(cross_set), "format": "tide-cross"} | changes.pop("corpus", {})
        values = build_values(out, "cross", build__samples_per_shard=16, views__num_views=2, **changes)
        return BuildRun.model_validate(values | {"corpus": corpus})

    return make


@pytest.fixture(scope="module")
def built(run_on: Callable[..., BuildRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "cache"
    build_cache(run_on(out))
    return out


def test_the_cache_holds_the_samples_that_pairing_the_conversations_gives(
    built: Path, own_pairs: list[SamplePair]
) -> None:
    manifest = Manifest.load(built)
    assert manifest.identity.pairing.aligner == "tide-cross"
    assert manifest.totals["pairs"]["dropped.marked _discard in the preprocessed set"] == 1
    shards = range(manifest.plan.num_shards)
    found = [pair for shard in shards for pair in manifest.reader(built, "pairs", shard).read_pairs(0)]
    assert len(found) == len(own_pairs) == 40
    for pair, own in zip(found, own_pairs, strict=True):
        length = len(own.student_ids_L)
        assert pair.student_ids_L[:length].tolist() == own.student_ids_L.tolist()
        assert len(pair.student_ids_L) % 8 == 0, "the last block is filled"
        assert pair.teacher_ids_M.tolist() == own.teacher_ids_M.tolist()
        assert pair.chunks_C4.tolist() == own.chunks_C4[own.is_distillable_C].tolist()


def test_it_verifies_and_builds_the_same_bytes_again(
    built: Path, run_on: Callable[..., BuildRun], tree: Tree, tmp_path: Path
) -> None:
    assert verify(built, deep=True).ok
    build_cache(run_on(tmp_path / "again"))
    assert tree(tmp_path / "again") == tree(built)


def test_it_can_be_planned(run_on: Callable[..., BuildRun], tmp_path: Path) -> None:
    run = run_on(tmp_path / "cache")
    found = plan_build(run, prepare_build(run), sample_rows=8)
    assert (found.num_rows, found.num_shards) == (41, 3)
    assert found.cache_bytes > 0
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_says_what_the_build_will_read(run_on: Callable[..., BuildRun], tmp_path: Path) -> None:
    run = run_on(tmp_path / "cache")
    flags = [f"teacher.{name}={value}" for name, value in (("max_length", LENGTH), ("dtype", "float32"))]
    flags += ["corpus.format=tide-cross", f"student.max_length={LENGTH}", "student.block_size=8"]
    result = CliRunner().invoke(
        app,
        [
            *("build-teacher-shards", "--dry-run", "--teacher", run.teacher.model, "--out", str(tmp_path / "cache")),
            *("--student", run.student.tokenizer.path, "--dataset", run.corpus.spec),
            *(part for flag in flags for part in ("--set", flag)),
        ],
    )
    assert result.exit_code == 0, result.stderr
    assert 'format = "tide-cross"' in result.stdout
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["ce", "calm"])
def test_a_student_learns_from_the_cache(built: Path, vocabularies: Vocabularies, tmp_path: Path, kind: str) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    student = {"shape": shape, "tokenizer": {"path": str(vocabularies.first)}, "block_size": 8}
    settings = {
        "out": str(tmp_path / "student"), "steps": 3, "global_batch": 8, "micro_batch": 8, "device": "cpu",
        "precision": "float32", "checkpoint_every": 0, "log_every": 1,
    }  # fmt: skip
    values = {"student": student, "data": {"cache": str(built)}, "objective": [{"kind": kind}], "train": settings}
    train(TrainRun.model_validate(values))
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["losses"][kind] for line in lines]
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)
    corpus = {"spec": "set.jsonl", "format": "tide-cross"}
    elsewhere = {"train": settings | {"out": str(tmp_path / "other")}, "objective": [{"kind": "ce"}]}
    with pytest.raises(RunFileError, match=r"corpus\.format: found 'tide-cross'; expected 'chat' here: "):
        train(TrainRun.model_validate(values | elsewhere | {"data": {"corpus": corpus}}))


def test_another_set_is_another_cache(
    built: Path, run_on: Callable[..., BuildRun], cross_set: Path, tmp_path: Path, corpus_file: Path
) -> None:
    lines = cross_set.read_text().splitlines(keepends=True)
    row = json.loads(lines[3])
    row["labels"][-1] = -100
    (tmp_path / "set.jsonl").write_text("".join([*lines[:3], json.dumps(row) + "\n", *lines[4:]]))
    with pytest.raises(CacheMismatchError, match="corpus_hash: cache has"):
        build_cache(run_on(built, corpus={"spec": str(tmp_path / "set.jsonl")}))
    with pytest.raises(CacheMismatchError, match=r"pairing\.aligner: cache has 'tide-cross', run declares 'bytes'"):
        build_cache(run_on(built, corpus={"spec": str(corpus_file), "format": "chat"}))


def test_a_set_of_other_tokenizers_is_refused_before_the_teacher_is_loaded(
    run_on: Callable[..., BuildRun], vocabularies: Vocabularies, tmp_path: Path
) -> None:
    run = run_on(tmp_path / "cache", student__tokenizer={"path": str(vocabularies.second)})
    with pytest.raises(CorpusError, match=r"in its first 41 rows none of 40 spans has the same bytes on both sides"):
        prepare_build(run)


def test_another_aligner_is_refused(run_on: Callable[..., BuildRun], tmp_path: Path) -> None:
    run = run_on(tmp_path / "cache")
    values = run.model_dump() | {"pairing": {"aligner": "tokenkit"}}
    with pytest.raises(RunFileError, match=r"pairing\.aligner: found 'tokenkit', but the spans of corpus\.format = "):
        prepare_build(BuildRun.model_validate(values))
