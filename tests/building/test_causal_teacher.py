"""A causal teacher: its next-token distribution under the true prefix, captured once and read by every view."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.teacher_examples import write_causal
from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import PairingError, RunFileError, ShardCorruptError
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.joining import ActiveChunks, join_views
from tide_cache.manifest import Manifest, verify
from tide_cache.pairing import TextTokenizer
from tide_cache.records import SamplePair
from tide_cache.teacher.capture import require_prefixes
from tide_cache.training.run import train
from tide_cache.views import draw_view

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
NUM_VIEWS = 4


@pytest.fixture(scope="module")
def causal_model(tmp_path_factory, vocabularies):
    """A stock Qwen3 as transformers saves it, with a tokenizer that names no mask token."""
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    return write_causal(tmp_path_factory.mktemp("causal"), "qwen3", tokenizer)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, build_values, causal_model):
    def make(pipeline="cross", **changes):
        values = build_values(tmp_path_factory.mktemp("out") / "cache", pipeline, **changes)
        values["corpus"]["spec"] += "[train:6]"
        values["teacher"] |= {"model": str(causal_model), "context": "causal"} | values["teacher"].pop("other", {})
        values["signals"] |= {"kinds": ["truth", "topk", "chunks"], "logprob_dtype": "float32", "tail_samples": 4}
        values["views"]["num_views"] = values["views"].get("num_views", NUM_VIEWS)
        return BuildRun.model_validate(values)

    return make


@pytest.fixture(scope="module")
def causal_run(run_of):
    run = run_of()
    build_cache(run)
    return run


@pytest.fixture(scope="module")
def next_token_logprobs(causal_model):
    """Ask the stock model itself: row i is its distribution of token i, given the true tokens before."""
    model = AutoModelForCausalLM.from_pretrained(causal_model, dtype=torch.float32).eval()

    def give(pair):
        with torch.no_grad():
            logits_MV = model(torch.tensor(pair.teacher_ids_M[None].astype(np.int64))).logits[0]
        return np.concatenate([np.full((1, logits_MV.shape[1]), np.nan), logits_MV.log_softmax(dim=1)[:-1].numpy()])

    return give


def source_of(run, **options):
    return CacheSource(run.build.out, Manifest.load(run.build.out), **options)


def test_the_stored_rows_are_the_stock_models_next_token_distributions(causal_run, next_token_logprobs):
    for record in source_of(causal_run).records(range(6), 2):
        logprobs_MV = next_token_logprobs(record.pair)
        position_N = np.flatnonzero(record.view.is_teacher_masked_M)
        true_N = record.pair.teacher_ids_M[position_N]
        np.testing.assert_allclose(record.signal.truth_logprobs_N, logprobs_MV[position_N, true_N], atol=1e-5)
        np.testing.assert_array_equal(record.signal.is_top1_N, logprobs_MV[position_N].argmax(axis=1) == true_N)
        topk = record.signal.topk
        row_E = np.repeat(position_N[topk.rows_R], topk.counts_R)
        np.testing.assert_allclose(topk.logprobs_E, logprobs_MV[row_E, topk.ids_E.astype(int)], atol=1e-5)


def test_a_chunk_has_the_product_of_its_tokens_under_the_true_prefix(causal_run, next_token_logprobs):
    """That of the true text, in the sum which `calm` reads and among the candidates of `chunk_kl`."""
    build = prepare_build(causal_run)
    every = replace(build.capture.signals, top_k=build.checkpoint.vocab_size, top_p=1.0, chunk_k=20_000)
    teacher = load_teacher(causal_run, replace(build, capture=replace(build.capture, signals=every)), "cpu")
    sizes, multiples = [], []
    for record in source_of(causal_run).records(range(2), 3):
        pair, logprobs_MV = record.pair, next_token_logprobs(record.pair)
        ((signal,),) = teacher.signals([pair], [[record.view]])
        joined = join_views([replace(record, signal=signal)], every.temperatures, every.temperatures)
        summed_A, chunks = ActiveChunks.of(joined).teacher_logprobs(joined), signal.chunks
        spans_A4 = pair.chunks_C4[chunks.chunks_A]
        first_A = np.cumsum(chunks.counts_A) - chunks.counts_A
        size_J = np.repeat(spans_A4[:, 3] - spans_A4[:, 2], chunks.counts_A)
        candidates = np.split(chunks.ids_F, np.cumsum(size_J)[:-1])
        multiples += (spans_A4[:, 1] - spans_A4[:, 0]).tolist()
        for a, (start, end, from_, to) in enumerate(spans_A4):
            expected = logprobs_MV[np.arange(start, end), pair.teacher_ids_M[start:end]].sum()
            assert summed_A[a] == pytest.approx(expected, abs=1e-4)
            for j in range(first_A[a], first_A[a] + chunks.counts_A[a]):
                if np.array_equal(candidates[j], pair.student_ids_L[from_:to]):
                    # Other teacher tokens may spell the same text; their probability is added.
                    assert chunks.logprobs_J[j] >= expected - 1e-4
                    if end - start == 1:
                        assert chunks.logprobs_J[j] == pytest.approx(expected, abs=1e-4)
                    sizes.append((end - start, to - from_))
    assert max(multiples) > 1
    assert len(sizes) > 10


def test_every_view_reads_what_a_live_teacher_would_say_of_it(causal_run):
    build = prepare_build(causal_run)
    teacher = load_teacher(causal_run, build, "cpu")
    for number in range(NUM_VIEWS):
        records = source_of(causal_run).records(range(6), number)
        pairs = [record.pair for record in records]
        views = [draw_view(pair, number, causal_run.views) for pair in pairs]
        asked = teacher.signals(pairs, [[view] for view in views])
        for record, view, (expected,) in zip(records, views, asked, strict=True):
            assert (record.view.view, record.view.t) == (number, view.t)
            np.testing.assert_array_equal(record.view.is_student_masked_L, view.is_student_masked_L)
            found, same = record.signal, {"atol": 1e-5}
            np.testing.assert_allclose(found.truth_logprobs_N, expected.truth_logprobs_N, **same)
            for part, names in (
                ("topk", ("rows_R", "counts_R", "ids_E")),
                ("chunks", ("chunks_A", "counts_A", "ids_F")),
            ):
                for name in names:
                    np.testing.assert_array_equal(
                        getattr(getattr(found, part), name), getattr(getattr(expected, part), name)
                    )
            np.testing.assert_allclose(found.topk.log_tail_RT, expected.topk.log_tail_RT, atol=1e-4)
            np.testing.assert_allclose(found.chunks.logprobs_J, expected.chunks.logprobs_J, **same)


def test_one_view_is_stored_whatever_the_number_of_views_and_the_documents_say_so(run_of, causal_run):
    more = run_of(views__num_views=64)
    build_cache(more)
    few, many = (Manifest.load(run.build.out) for run in (causal_run, more))
    assert few.totals["plain"] == many.totals["plain"]  # bytes of columns among them
    assert few.totals["plain"]["views"] == few.totals["pairs"]["samples"]
    assert few.identity.cache_id != many.identity.cache_id  # the views of training differ
    assert verify(more.build.out, deep=True).ok
    for name in ("plan.json", "manifest.json"):
        document = json.loads((more.build.out / name).read_text())
        assert document["format_version"] == document["identity"]["format_version"] == 2
        assert document["identity"]["teacher"]["context"] == "causal"
    masks = {source_of(more).records([0], epoch)[0].view.is_student_masked_L.tobytes() for epoch in range(64)}
    assert len(masks) > 32


def test_objectives_of_every_signal_train_from_it(tmp_path, causal_run, vocabularies):
    values = {
        "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.first)}},
        "data": {"cache": str(causal_run.build.out)},
        "objective": [{"kind": kind} for kind in ("kl", "chunk_kl", "calm", "tidal")],
        "train": {
            "out": str(tmp_path / "run"), "steps": 5, "global_batch": 4, "micro_batch": 4, "log_every": 1,
            "precision": "float32", "device": "cpu",
        },
    }  # fmt: skip
    train(TrainRun.model_validate(values))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_what_cannot_be_causal_is_refused_before_anything_is_loaded(run_of, tiny_teacher):
    message = r"teacher.context: found 'causal', but .* \(a2d-qwen3\) is a masked diffusion model.*context = 'block'"
    with pytest.raises(RunFileError, match=message):
        prepare_build(run_of("shared", teacher__other={"model": str(tiny_teacher)}))
    with pytest.raises(RunFileError, match=r"build.passes: found 'compdemo' with teacher.context = 'causal'"):
        prepare_build(run_of(build__passes=["plain", "compdemo"]))
    with pytest.raises(RunFileError, match=r"signals.chunk_passes: found 2 with teacher.context = 'causal'"):
        prepare_build(run_of(signals__chunk_passes=2))


def test_a_first_token_without_a_prefix_is_refused():
    ids = np.arange(3, dtype=np.int32)
    chunks = np.array([[0, 1, 0, 1], [1, 3, 1, 3]], np.int32)
    pair = SamplePair("bare", ids, np.ones(3, bool), ids, chunks)
    with pytest.raises(PairingError, match=re.escape("sample 'bare': its first teacher token is supervised")):
        require_prefixes([pair])


def test_documents_of_another_version_than_the_identity_are_refused(tmp_path, causal_run):
    """Version 1 would let a reader take the stored view for a view of training."""
    document = json.loads((causal_run.build.out / "manifest.json").read_text())
    older = {**document, "format_version": 1, "identity": document["identity"] | {"format_version": 1}}
    for changed, message in (
        (older, "context 'causal' needs 2"),
        ({**document, "format_version": 1}, "in the identity"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ShardCorruptError, match=message):
            Manifest.load(tmp_path)
