"""The figures of the codec benchmark are of what the codec does, and its KL is one."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import codec
from benchmarks.options import Options

RNG = np.random.default_rng(0)
LOGITS = -np.sort(RNG.normal(0, 2, (9, 12)), axis=1)
SHARES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True) * 0.9
ROWS = codec.Rows(
    [4, 5],
    np.stack([RNG.permutation(codec.VOCAB_SIZE)[:12] for _ in range(9)]).astype(np.uint32),
    np.log(SHARES).astype(np.float32),
    np.log(1 - np.exp(np.log(SHARES).astype(np.float32).astype(np.float64)).sum(axis=1)),
)


def test_the_kl_is_that_of_whole_distributions():
    """Over all of a vocabulary, written out."""
    counts = np.array([1, 2, 3, 5, 8, 12, 12, 11, 4])
    for at, count in enumerate(counts):
        p = np.full(codec.VOCAB_SIZE, np.exp(ROWS.log_tail_P[at]) / (codec.VOCAB_SIZE - 12))
        p[ROWS.ids_PK[at]] = np.exp(ROWS.logprobs_PK[at].astype(np.float64))
        q = np.full(codec.VOCAB_SIZE, (1 - np.exp(ROWS.logprobs_PK[at, :count].astype(np.float64)).sum()))
        q /= codec.VOCAB_SIZE - count
        q[ROWS.ids_PK[at, :count]] = np.exp(ROWS.logprobs_PK[at, :count].astype(np.float16).astype(np.float64))
        want = (p * np.log(p / (q / q.sum()))).sum()
        assert codec._kl(ROWS, counts)[at] == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_what_is_stored_is_what_was_drawn():
    counts = np.array([1, 2, 3, 5, 8, 12, 12, 11, 4])
    stored = codec._stored(ROWS, counts)
    assert stored.num_positions == 9
    topk = stored.records[1][0].signal.topk
    assert topk.counts_R.tolist() == counts[4:].tolist()
    assert topk.ids_E[:8].tolist() == ROWS.ids_PK[4, :8].tolist()
    assert stored.encode("compact").size > 0


@pytest.mark.usefixtures("shared")
def test_all_figures_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = codec.run(Options(rows=2, repeats=1, cache=tmp_path))
    assert {
        "bytes_per_position_k64_plain",
        "bytes_per_position_k64_compact",
        "codec_kl_mean",
        "codec_kl_max",
        "encode_positions_per_s",
        "decode_positions_per_s",
        "decode_positions_per_s_compact",
        "curve_k8_kl",
        "curve_top_p0.99_bytes_per_position",
    } <= figures.keys()
    assert 0 <= figures["codec_kl_mean"] < figures["codec_kl_max"] < 1e-3
    assert figures["curve_k8_kl"] > figures["curve_k64_kl"] > figures["curve_k256_kl"]
    assert f"no real rows, {tmp_path} is no complete cache; --cache names another" in capsys.readouterr().err
    assert not any(name.startswith("real_") for name in figures)


@pytest.mark.usefixtures("shared")
def test_the_rows_of_a_teacher_get_a_curve_of_their_own(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch):
    for name, smaller in {"CURVE_K": 32, "FIXED_KS": (4, 8, 16), "REAL_SAMPLES": 4}.items():
        monkeypatch.setattr(codec, name, smaller)
    rows = codec._rows_of(tiny_teacher)
    assert rows.ids_PK.shape == rows.logprobs_PK.shape == (sum(rows.num_positions), 32)
    assert rows.ids_PK.max() < rows.vocab_size < codec.VOCAB_SIZE
    mass_P = np.exp(rows.logprobs_PK.astype(np.float64)).sum(axis=1) + np.exp(rows.log_tail_P)
    assert np.allclose(mass_P, 1, atol=1e-3)
    figures = codec._curves(rows)
    assert figures["curve_k4_kl"] > figures["curve_k16_kl"] > 0
