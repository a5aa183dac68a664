"""Top-k that an engine wrote gives the cache that asking the same causal teacher gives, or is refused by name."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from helpers.engine_examples import vllm_positions, write_distillkit, write_jsonl, write_parquet_lists
from helpers.teacher_examples import write_causal
from tide_cache.building import rows as building_rows
from tide_cache.building.driver import build_cache
from tide_cache.building.executors.ray_actors import ShardActor
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.training.run import train
from tide_cache_cli.main import app

TOP_K = 12


@pytest.fixture(scope="module")
def tokenizer(vocabularies):
    return TextTokenizer.load(str(vocabularies.second))


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return write_causal(tmp_path_factory.mktemp("causal"), "qwen3", tokenizer)


@pytest.fixture(scope="module")
def values_of(build_values, model):
    def make(out, pipeline="cross"):
        values = build_values(out, pipeline)
        values["corpus"]["spec"] += "[train:6]"
        values["teacher"] |= {"model": str(model), "context": "causal"}
        values["signals"] = {
            "kinds": ["truth", "topk", "chunks"], "logprob_dtype": "float32", "top_k": TOP_K, "top_p": 0.9,
            "temperatures": [1.0],
        }  # fmt: skip
        return values

    return make


@pytest.fixture(scope="module")
def direct(tmp_path_factory, values_of):
    run = BuildRun.model_validate(values_of(tmp_path_factory.mktemp("direct") / "cache"))
    build_cache(run)
    return run


@pytest.fixture(scope="module")
def logprobs_of(model):
    """Ask the stock model: row i is its distribution of token i, given the true tokens before."""
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def give(ids):
        with torch.no_grad():
            logprobs_MV = stock(torch.tensor(ids[None].astype(np.int64))).logits[0].log_softmax(dim=1).numpy()
        return np.concatenate([np.full_like(logprobs_MV[:1], np.nan), logprobs_MV[:-1]])

    return give


@pytest.fixture(scope="module")
def pairs(direct):
    build = prepare_build(direct)
    return [pair for shard in range(build.plan.num_shards) for pair in build.paired.shard(shard).pairs]


@pytest.fixture(scope="module")
def rows(pairs, logprobs_of, tokenizer):
    """What vLLM's offline requests give, with the names of samples."""
    return [
        {
            "sample_id": str(pair.sample_id),
            "prompt_token_ids": pair.teacher_ids_M.tolist(),
            "prompt_logprobs": vllm_positions(
                logprobs_of(pair.teacher_ids_M), pair.teacher_ids_M, TOP_K, tokenizer
            ),
        }
        for pair in pairs
    ]  # fmt: skip


@pytest.fixture
def imported(tmp_path, direct):
    """Import a file in this process by the command line."""
    text = json.dumps(direct.model_dump(mode="json"))

    def call(*arguments, out=tmp_path / "cache"):
        from tide_cache_cli.run_toml import run_toml

        run = BuildRun.model_validate(json.loads(text))
        (tmp_path / "run.toml").write_text(run_toml(run))
        result = CliRunner().invoke(
            app, ["import-topk", *map(str, arguments), "--run", str(tmp_path / "run.toml"), "--out", str(out)]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def records_of(folder):
    return CacheSource(folder, Manifest.load(folder)).records(range(6), 1)


def require_equal(folder, direct):
    for found, expected in zip(records_of(folder), records_of(direct.build.out), strict=True):
        one, other = found.signal, expected.signal
        np.testing.assert_array_equal(one.is_top1_N, other.is_top1_N)
        np.testing.assert_allclose(one.truth_logprobs_N, other.truth_logprobs_N, atol=1e-5)
        for part, names, near in (
            ("topk", ("rows_R", "counts_R", "ids_E"), "logprobs_E"),
            ("chunks", ("chunks_A", "counts_A", "ids_F"), "logprobs_J"),
        ):
            a, b = getattr(one, part), getattr(other, part)
            for name in names:
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            np.testing.assert_allclose(getattr(a, near), getattr(b, near), atol=1e-5)
        np.testing.assert_allclose(np.exp(one.topk.log_tail_RT), np.exp(other.topk.log_tail_RT), atol=1e-5)
        np.testing.assert_allclose(np.exp(one.chunks.log_tail_AT), np.exp(other.chunks.log_tail_AT), atol=1e-5)


def test_vllms_lines_give_the_rows_that_asking_the_teacher_gives(tmp_path, rows, imported, direct, monkeypatch):
    result = imported(write_jsonl(tmp_path / "topk.jsonl", rows), "--engine", "vllm 0.11.0", "--name", "org/teacher")
    assert result.exit_code == 0, result.stderr
    require_equal(tmp_path / "cache", direct)
    identity = Manifest.load(tmp_path / "cache").identity
    assert (identity.format_version, identity.is_shared) == (2, True)
    said = identity.teacher
    assert (said["engine"], said["name"], said["topk_format"]) == ("vllm 0.11.0", "org/teacher", "vllm")
    assert len(said["topk_sha256"]) == 64
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "cache"), "--deep"]).exit_code == 0
    record = json.loads((tmp_path / "cache/build.json").read_text())["run"]
    actor = ShardActor({**record, "build": record["build"] | {"out": str(tmp_path / "cache")}})
    with monkeypatch.context() as patch:
        patch.setattr(building_rows, "open_corpus", lambda *_, **__: pytest.fail("the corpus was read"))
        assert actor.build(0).get("error") is None, "a worker elsewhere reads the file again"
    shard = next((tmp_path / "cache").glob("signals/plain/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    assert CliRunner().invoke(app, ["repair", str(tmp_path / "cache")]).exit_code == 0
    require_equal(tmp_path / "cache", direct)


def test_every_objective_at_t_1_learns_from_it(tmp_path, rows, imported, vocabularies):
    assert imported(write_jsonl(tmp_path / "topk.jsonl", rows)).exit_code == 0
    kinds = ("kl", "reverse_kl", "chunk_kl", "calm", "reverse_calm", "bernoulli_kl")
    with_t = ("kl", "reverse_kl", "chunk_kl")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    run = {
        "student": {"shape": shape, "tokenizer": {"path": str(vocabularies.first)}},
        "data": {"cache": str(tmp_path / "cache")},
        "objective": [{"kind": kind} | ({"temperature": 1.0} if kind in with_t else {}) for kind in kinds],
        "train": {
            "out": str(tmp_path / "run"), "steps": 5, "global_batch": 4, "micro_batch": 4, "log_every": 5,
            "precision": "float32", "device": "cpu",
        },
    }  # fmt: skip
    train(TrainRun.model_validate(run))
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 5
    assert len(last["losses"]) == len(kinds)
    assert np.isfinite(list(last["losses"].values())).all()


def test_answers_of_a_server_and_parquet_are_the_same(tmp_path, rows, imported, direct):
    """A batch's answers are matched by custom_id, others by their tokens, in any order."""
    answered = [
        {
            "custom_id": row["sample_id"],
            "response": {"body": {"choices": [{key: row[key] for key in ("prompt_token_ids", "prompt_logprobs")}]}},
        }
        for row in reversed(rows)
    ]
    bare = [{"prompt_logprobs": row["prompt_logprobs"]} for row in reversed(rows)]
    files = (
        write_jsonl(tmp_path / "answers.jsonl", answered),
        write_jsonl(tmp_path / "bare.jsonl", bare),
        write_parquet_lists(tmp_path / "topk.parquet", rows),
    )
    for number, file in enumerate(files):
        result = imported(file, out=tmp_path / f"cache-{number}")
        assert result.exit_code == 0, result.stderr
        require_equal(tmp_path / f"cache-{number}", direct)


def test_distillkits_exact_logprobs_are_unpacked(tmp_path, pairs, logprobs_of, tokenizer, imported, direct):
    vocab_size = logprobs_of(pairs[0].teacher_ids_M).shape[1]
    texts = [pair.teacher_ids_M for pair in reversed(pairs)]
    every = write_distillkit(tmp_path / "every", texts, logprobs_of, vocab_size, tokenizer.pad_id)
    result = imported(every)
    assert result.exit_code == 0, result.stderr
    require_equal(tmp_path / "cache", direct)
    assert Manifest.load(tmp_path / "cache").identity.teacher["topk_format"] == "distillkit"
    few = write_distillkit(tmp_path / "few", texts, logprobs_of, 2, tokenizer.pad_id)
    result = imported(few, out=tmp_path / "other")
    assert result.exit_code == 3
    assert "the true one; expected its log-prob too (DistillKit drops it" in " ".join(result.stderr.split())
    lossy = write_distillkit(tmp_path / "lossy", texts[:1], logprobs_of, 2, tokenizer.pad_id, exact_k=0)
    result = imported(lossy, out=tmp_path / "other")
    assert result.exit_code == 3
    assert "exact_k: found 0: all log-probs are approximated" in " ".join(result.stderr.split())


def test_the_true_token_alone_is_enough_for_truth_and_fewer_ids_than_allowed_are_kept(tmp_path, rows, imported, direct):
    bare = [
        row | {"prompt_logprobs": [at and dict(list(at.items())[:1]) for at in row["prompt_logprobs"]]} for row in rows
    ]
    file = write_jsonl(tmp_path / "bare.jsonl", bare)
    refused = imported(file)
    assert refused.exit_code == 2
    assert "bare.jsonl lists the true token alone; use ['truth']" in " ".join(refused.stderr.split())
    assert imported(file, "--set", "signals.kinds=['truth']").exit_code == 0
    for found, expected in zip(records_of(tmp_path / "cache"), records_of(direct.build.out), strict=True):
        np.testing.assert_allclose(found.signal.truth_logprobs_N, expected.signal.truth_logprobs_N, atol=1e-5)
        np.testing.assert_array_equal(found.signal.is_top1_N, expected.signal.is_top1_N)
    wide = ("--set", "signals.top_k=64", "--dry-run")
    result = imported(write_jsonl(tmp_path / "topk.jsonl", rows), *wide, out=tmp_path / "other")
    assert result.exit_code == 0
    assert "lists 12 ids at a position; signals.top_k allows 64, and 12 are kept" in " ".join(result.stderr.split())
    assert "[teacher.topk]" in result.stdout
    assert not (tmp_path / "other").exists()


def test_what_to_ask_is_written_for_each_sample(tmp_path, imported, pairs):
    result = imported("--write-prompts", tmp_path / "prompts.jsonl", "--top-k", 20)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [str(pair.sample_id) for pair in pairs]
    assert lines[0]["body"]["prompt"] == pairs[0].teacher_ids_M.tolist()
    assert lines[0]["body"]["prompt_logprobs"] == 20
    assert not (tmp_path / "cache").exists()


def changed(rows, place, **changes):
    """Copy rows, with entries of one position of the first replaced."""
    copied = json.loads(json.dumps(rows))
    entries = copied[0]["prompt_logprobs"][place]
    for name, value in changes.items():
        entries[list(entries)[-1 if name == "last" else 0]] |= value
    return copied


def out_of_order(rows):
    return changed(rows, -1, last={"logprob": -0.01})


def too_much(rows):
    copied = json.loads(json.dumps(rows))
    for said in copied[0]["prompt_logprobs"][-1].values():
        said["logprob"] = -0.01
    return copied


def not_normalised(rows):
    copied = json.loads(json.dumps(rows))
    for said in copied[0]["prompt_logprobs"][-1].values():
        said["logprob"] -= 30
    return copied


def other_tokens(rows):
    copied = json.loads(json.dumps(rows))
    ids, said = copied[2]["prompt_token_ids"], copied[2]["prompt_logprobs"]
    if said[3][str(ids[3])]["rank"] > TOP_K:
        del said[3][str(ids[3])]
    ids[3] = next(int(token_id) for token_id in said[3] if int(token_id) != ids[3])
    return copied


def other_texts(rows):
    return changed(rows, 2, first={"decoded_token": "another"})


def other_k(rows):
    copied = json.loads(json.dumps(rows))
    entries = copied[1]["prompt_logprobs"][-1]
    last = max(entries, key=lambda token_id: entries[token_id]["rank"])
    second = sorted(entries, key=lambda token_id: entries[token_id]["rank"])[-2]
    del entries[last], entries[second]
    return copied


def without_truth(rows):
    copied = json.loads(json.dumps(rows))
    for row in copied:
        for token_id, said in zip(row["prompt_token_ids"], row["prompt_logprobs"], strict=True):
            if said and said[str(token_id)]["rank"] > TOP_K:
                del said[str(token_id)]
    return copied


def unnamed_sample(rows):
    return [row | {"sample_id": f"{row['sample_id']}-x"} for row in rows]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (out_of_order, r"topk.jsonl:1: position \d+: top-k is out of order: found token id \d+ with log-prob"),
        (too_much, "found probabilities that sum to 1[0-9.]+; expected at most 1"),
        (not_normalised, "other ids, none likelier than the last, make up"),
        (other_tokens, r"topk.jsonl:3: sample '\S+', position 3: found token \d+ \(.*, expected token .*cuts"),
        (other_texts, "position 2: found the text 'another' for token"),
        (other_k, r"found 1[01] ids at topk.jsonl:2, position \d+, and 12 at"),
        (without_truth, r"the true one; expected its log-prob too \(vLLM adds it"),
        (unnamed_sample, r"found no row of sample '\S+' among 6; expected one for every"),
        (lambda rows: rows[:5], "found no row of sample"),
        (lambda rows: [*rows, rows[0]], r"topk.jsonl:7: found sample '\S+' twice"),
        (lambda rows: [{"sample_id": "a", "error": "no room"}], "found an error in place of an answer: no room"),
        (lambda rows: [{"text": "a"}], "found no prompt_logprobs among text; ask vLLM for them"),
    ],
)  # fmt: skip
def test_a_file_of_other_texts_or_wrong_numbers_is_refused(tmp_path, rows, imported, spoil, message):
    result = imported(write_jsonl(tmp_path / "topk.jsonl", spoil(rows)))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "signals.temperatures=[1.0, 2.0]"), "signals.temperatures: found 1, 2, but what top-k leaves out"),
        (("--set", "signals.tail_samples=4"), "signals.tail_samples: found 4"),
        (("--set", "teacher.context=block"), "context: found 'block', but topk is what a causal model"),
        (("--set", "build.passes=['compdemo']"), "build.passes: found 'compdemo'"),
        (("--write-prompts", "x.jsonl"), "FILE and --write-prompts: found both"),
        (("--top-k", "4"), "--top-k: only --write-prompts asks"),
    ],
)
def test_what_top_k_cannot_give_is_refused(tmp_path, rows, imported, options, message):
    result = imported(write_jsonl(tmp_path / "topk.jsonl", rows[:1]), *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
