"""Training is a pure function of its run file: micro-batches, live teacher, interruption and resume change nothing."""

import json
import os
import shutil
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.errors import (
    CacheMismatchError,
    CheckpointError,
    Interrupted,
    PairingError,
    RunFileError,
    ShardCorruptError,
)
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.window_order import WindowOrder
from tide_cache.manifest import Manifest
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.pairing import TextTokenizer
from tide_cache.training.checkpoints import committed_checkpoints
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train

ALL = ({"kind": "ce"}, {"kind": "kl"}, {"kind": "reverse_kl"}, {"kind": "calm"}, {"kind": "reverse_calm"})
ALONE = World(0, 1, 0)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}


@pytest.fixture(scope="module")
def exact_build(tmp_path_factory, build_values):
    """A build that keeps every id in float32, so that a cache equals the live teacher."""
    values = build_values(
        tmp_path_factory.mktemp("exact") / "cache", signals__top_k=512, signals__top_p=1.0,
        signals__logprob_dtype="float32", signals__temperatures=(1.0, 2.0),
    )  # fmt: skip
    run = BuildRun.model_validate(values)
    build_cache(run)
    return run


@pytest.fixture
def make_run(tmp_path, exact_build, vocabularies):
    def make(name="run", objectives=ALL, data=None, tokenizer=None, **train_section):
        section = {"out": str(tmp_path / name), "steps": 6, "global_batch": 8, "micro_batch": 8}
        section |= {"precision": "float32", "checkpoint_every": 3, "log_every": 1, "device": "cpu"}
        return TrainRun.model_validate(
            {
                "student": {
                    "shape": SHAPE, "tokenizer": {"path": str(tokenizer or vocabularies.second)}, "block_size": 8,
                    "max_length": 64,
                },
                "data": data or {"cache": str(exact_build.build.out)},
                "objective": objectives,
                "optimizer": {"lr": 1e-3},
                "train": section | train_section,
            }
        )  # fmt: skip

    return make


def lines(run):
    return [json.loads(line) for line in (run.train.out / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return load_file(run.train.out / "model/model.safetensors")


def assert_equal_runs(first, second, rtol=0.0):
    for one, other in zip(lines(first), lines(second), strict=True):
        assert one["step"] == other["step"]
        assert one["losses"] == pytest.approx(other["losses"], rel=rtol or 1e-12)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(tensor, weights(second)[name], rtol=rtol, atol=rtol / 10)


def test_accumulated_micro_batches_equal_one_batch(make_run):
    whole, parts = make_run("whole"), make_run("parts", micro_batch=2)
    train(whole)
    train(parts)
    assert_equal_runs(whole, parts, rtol=2e-5)


def test_loading_ahead_changes_no_bit(make_run):
    runs = [make_run(f"ahead-{ahead}", prefetch=ahead, micro_batch=4) for ahead in (0, 3)]
    for run in runs:
        train(run)
    assert_equal_runs(*runs)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_damage_found_while_loading_ahead_is_told_at_its_step(make_run, exact_build, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(exact_build.build.out, cache)
    for path in (cache / "signals" / "plain").glob("*.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(ShardCorruptError, match=r"shard-00000\d.parquet: row group .* are not the committed ones"):
        train(make_run(data={"cache": str(cache)}, prefetch=2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize(("precision", "zero_stage"), [("float32", 0), ("bfloat16", 0), ("bfloat16", 2)])
def test_three_resumes_end_in_the_same_bits(make_run, precision, zero_stage):
    how = {"precision": precision, "zero_stage": zero_stage}
    undisturbed = make_run("undisturbed", **how)
    train(undisturbed)
    resumed = make_run("resumed", checkpoint_every=1, **how)
    for stop_at in (2, 3, 5):
        with pytest.raises(ZeroDivisionError):
            train(resumed, resume=stop_at > 2, on_step=lambda m, _, stop_at=stop_at: 1 // (stop_at - m.step))
        assert read_steps(resumed)[-1] == stop_at - 1
    train(resumed, resume=True)
    assert_equal_runs(undisturbed, resumed)


def read_steps(run):
    return [int(path.name.removeprefix("step-")) for path in committed_checkpoints(run.train.out / "checkpoints")]


def test_a_stop_request_commits_a_checkpoint_and_says_how_to_go_on(make_run):
    run = make_run(checkpoint_every=0)

    def interrupt(metrics, _):
        if metrics.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"Stopped after step 2 of 6.*--resume") as caught:
        train(run, on_step=interrupt)
    assert caught.value.exit_code == 143
    assert train(run, resume=True).last.step == 6
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]


def test_only_committed_and_unchanged_checkpoints_are_resumed(make_run):
    run = make_run()
    train(run)
    declared = (run.train.out / "run.json").read_text()
    with pytest.raises(CheckpointError, match=r"run declares 9"):
        train(make_run(steps=9), resume=True)
    assert (run.train.out / "run.json").read_text() == declared
    (checkpoint,) = committed_checkpoints(run.train.out / "checkpoints")
    state = next(checkpoint.glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{state.name} changed since"):
        train(run, resume=True)
    (checkpoint / "committed.json").unlink()
    with pytest.raises(CheckpointError, match=r"no committed checkpoint.*new train\.out, or remove .*run"):
        train(run, resume=True)
    with pytest.raises(RunFileError, match=r"is not empty and holds no checkpoint to resume; give a new folder"):
        train(run)


def test_a_checkpoint_from_before_there_were_lanes_goes_on_in_its_order(make_run):
    run = make_run(steps=2, checkpoint_every=1)
    train(run)
    for marker in run.train.out.glob("checkpoints/*/committed.json"):
        content = json.loads(marker.read_text())
        assert content["run"].pop("data.lanes") == 64
        marker.write_text(json.dumps(content))
    prepared = prepare(run, World(0, 1, 0), resume=True)
    assert isinstance(prepared.order, WindowOrder)
    assert prepared.continuity["data.lanes"] is None, "so that its next checkpoint says the same"


def test_a_refused_resume_loads_no_model_and_leaves_no_folder(make_run, monkeypatch):
    monkeypatch.setattr("tide_cache.training.run.new_backbone", lambda *_: pytest.fail("a model was made"))
    run = make_run()
    with pytest.raises(CheckpointError, match="no committed checkpoint"):
        train(run, resume=True)
    assert not run.train.out.exists()


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_bfloat16_trains_close_to_float32_without_chatter(make_run, zero_stage, capfd):
    exact, low = make_run("exact", steps=4), make_run("low", steps=4, precision="bfloat16", zero_stage=zero_stage)
    train(exact)
    train(low)
    assert lines(low)[-1]["loss"] == pytest.approx(lines(exact)[-1]["loss"], rel=2e-2)
    assert {tensor.dtype for tensor in weights(low).values()} == {torch.bfloat16}
    assert capfd.readouterr() == ("", "")


def test_zero_stages_agree(make_run):
    runs = [make_run(f"zero-{stage}", zero_stage=stage) for stage in (0, 1, 2)]
    for run in runs:
        train(run)
    for run in runs[1:]:
        assert_equal_runs(runs[0], run, rtol=1e-4)


def test_the_baseline_trains_from_a_plain_corpus_and_says_what_it_learned_from(make_run, corpus_file):
    run = make_run(objectives=({"kind": "ce"},), data={"corpus": {"spec": str(corpus_file)}}, steps=30)
    train(run)
    found = [line["loss"] for line in lines(run)]
    assert sum(found[-10:]) < sum(found[:10]), "single steps differ in their t"
    model = run.train.out / "model"
    provenance = json.loads((model / "tide_cache.json").read_text())
    assert provenance["data"] == {
        "kind": "corpus",
        "id": open_corpus(str(corpus_file), folder=corpus_file.parent).content_hash,
    }
    backbone = load_backbone(read_checkpoint(str(model)), torch.float32, "cpu")
    assert torch.equal(backbone.head_VD, weights(run)["model.embed_tokens.weight"])
    assert TextTokenizer.load(str(model)).mask_id == TextTokenizer.load(run.student.tokenizer.path).mask_id


def test_a_student_records_the_identity_of_its_cache(make_run, exact_build):
    run = make_run(steps=1)
    train(run)
    provenance = json.loads((run.train.out / "model/tide_cache.json").read_text())
    identity = Manifest.load(exact_build.build.out).identity
    assert provenance["data"] == {"kind": "cache", "id": identity.cache_id}
    assert provenance["cache_identity"] == identity.model_dump(mode="json")


def test_what_is_left_out_of_a_corpus_is_said(make_run, tmp_path):
    corpus = tmp_path / "mixed.jsonl"
    rows = [{"question": "copy: a", "answer": "a " * 90}, {"question": "copy: b", "answer": "b"}, {"nothing": 1}]
    rows.append({"question": "long " * 90, "answer": "c"})
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"corpus": {"spec": str(corpus), "on_bad_row": "skip"}}
    remarks = "\n".join(train(make_run(objectives=({"kind": "ce"},), data=data, steps=1)).remarks)
    assert "1 rows left out: no supervised student token within max_length" in remarks
    assert "1 of 2 samples cut at max_length" in remarks
    assert "1 bad rows skipped; the first: " in remarks


def test_the_first_step_is_shown_at_once_and_slow_ones_by_time(make_run, monkeypatch):
    shown, run = [], make_run(steps=6, log_every=5)
    train(run, on_step=lambda metrics, _: shown.append(metrics.step))
    assert shown == [1, 5, 6]
    monkeypatch.setattr("tide_cache.training.run.SECONDS_BETWEEN_SHOWN", 0.0)
    shown.clear()
    slow = make_run("slow", steps=6, log_every=5)
    train(slow, on_step=lambda metrics, _: shown.append(metrics.step))
    assert shown == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(slow)] == [line["step"] for line in lines(run)] == [5, 6]
    assert_equal_runs(run, slow)


def test_epochs_and_fewer_views(make_run, exact_build):
    run = make_run(
        objectives=({"kind": "kl"},), steps=None, epochs=0.5,
        data={"cache": str(exact_build.build.out), "num_views": 1},
    )  # fmt: skip
    assert train(run).steps == 3  # half of 40 samples in batches of 8
    source = CacheSource(exact_build.build.out, Manifest.load(exact_build.build.out), num_views=1)
    assert all(record.view.view == 0 for record in source.records(range(40), epoch=5))


class TestRefusals:
    """Everything is found before a model is loaded, and told at once."""

    def refuse(self, run, error, *parts, world=ALONE):
        with pytest.raises(error) as caught:
            prepare(run, world, resume=False)
        for part in parts:
            assert part in str(caught.value), str(caught.value)
        assert not (run.train.out / "run.json").exists()

    def test_another_tokenizer(self, make_run, vocabularies):
        run = make_run(tokenizer=vocabularies.first)
        self.refuse(run, CacheMismatchError, "student tokenizer, tokenizer: cache has", "build-teacher-shards")

    def test_another_block_size_or_length(self, make_run):
        run = make_run()
        student = run.student.model_copy(update={"block_size": 16, "max_length": 32})
        parts = ("student.block_size: found 16, the cache was built for 8", "student.max_length: found 32")
        self.refuse(run.model_copy(update={"student": student}), CacheMismatchError, *parts)
        silent = run.model_copy(update={"student": student.model_copy(update={"block_size": None, "max_length": None})})
        assert prepare(silent, ALONE, resume=False).layout.block_size == 8

    def test_missing_temperature(self, make_run):
        run = make_run(objectives=({"kind": "kl", "temperature": 3.0},))
        self.refuse(run, CacheMismatchError, "objectives also need [3.0]", "signals.temperatures=[1.0, 2.0, 3.0]")

    def test_missing_signal_and_view(self, make_run, tmp_path, build_values):
        build_cache(BuildRun.model_validate(build_values(tmp_path / "truth", signals__kinds=("truth",))))
        run = make_run(data={"cache": str(tmp_path / "truth"), "num_views": 5})
        self.refuse(run, CacheMismatchError, "also need ['topk']", "data.num_views: found 5, cache has 4")

    def test_no_teacher_for_an_objective_that_needs_one(self, make_run, corpus_file):
        run = make_run(data={"corpus": {"spec": str(corpus_file)}})
        self.refuse(run, RunFileError, "kl, reverse_kl, calm, reverse_calm needs a teacher's signals", "data.cache")

    def test_used_folder_and_uneven_batch_together(self, make_run):
        run = make_run()
        run.train.out.mkdir()
        (run.train.out / "old").write_text("")
        self.refuse(
            run, RunFileError, "is not empty and holds no checkpoint",
            "expected a multiple of micro_batch x processes = 8 x 3", world=World(0, 3, 0),
        )  # fmt: skip

    def test_a_folder_with_a_checkpoint_can_be_continued(self, make_run):
        run = make_run()
        (run.train.out / "checkpoints/step-00000003").mkdir(parents=True)
        (run.train.out / "checkpoints/step-00000003/committed.json").write_text("")
        self.refuse(run, RunFileError, "is not empty; add --resume to continue the run in it, or give a new folder")

    def test_a_corpus_without_a_sample(self, make_run, corpus_file):
        run = make_run(objectives=({"kind": "ce"},), data={"corpus": {"spec": str(corpus_file)}})
        run = run.model_copy(update={"student": run.student.model_copy(update={"max_length": 3})})
        self.refuse(run, PairingError, "no row of the corpus", "within max_length: 40", "Raise student.max_length")

    def test_a_sequence_above_the_models_limit(self, make_run, tiny_teacher):
        run = make_run()
        student = run.student.model_copy(update={"model": str(tiny_teacher), "shape": None, "max_length": 99_999})
        corpus = TrainRun.model_validate(run.model_dump() | {"data": {"corpus": {"spec": "unread"}}})
        run = corpus.model_copy(update={"student": student, "objective": run.objective[:1]})
        self.refuse(run, RunFileError, "student.max_length: found 99999, the model's limit is 32768")


def test_kernels_for_a_gpu_are_refused_on_a_cpu_before_anything_is_loaded(make_run):
    run = make_run(head="triton")
    run = run.model_copy(update={"student": run.student.model_copy(update={"attention": "flex"})})
    with pytest.raises(RunFileError, match=r"student.attention = 'flex': found the device .*; use sdpa, or auto") as f:
        prepare(run, ALONE, resume=False)
    assert "train.head = 'triton': found the device 'cpu', and the kernels need CUDA; use torch, or auto" in str(
        f.value
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_under_the_engine_gives_the_losses_of_sdpa(make_run, monkeypatch):
    """Not compiled, and with PyTorch's refusal to train it on CPUs lifted."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    monkeypatch.setattr("tide_cache.training.kernels.flex_problem", lambda _: None)
    sdpa = make_run("sdpa", batching="packed", micro_batch=4)
    flex = make_run("flex", batching="packed", micro_batch=4)
    flex = flex.model_copy(update={"student": flex.student.model_copy(update={"attention": "auto"})})
    with torch.compiler.set_stance("force_eager"):
        assert [train(run).remarks for run in (sdpa, flex)] == [(), ()]
    assert_equal_runs(sdpa, flex, rtol=1e-4)
