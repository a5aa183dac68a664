"""Figures of sampling are there and consistent; the teachers keep the published ratio of weights."""

import pytest
import torch

from benchmarks import thresholds
from benchmarks.inference import InferenceSize, measure
from benchmarks.published_shapes import SMALL_LLADA2, SMALL_STUDENT, SMALL_WEDLM
from helpers.fresh import IS_FULL


def test_thresholds_are_compared_with_one_token_a_step(tiny_teacher, shared):
    torch.set_num_threads(1)
    tiny = SMALL_STUDENT | {"num_hidden_layers": 1, "vocab_size": 256}
    figures = thresholds.measure(thresholds.random_answering(tiny, 1, 32), repeats=1, thresholds=(0.5, 0.9))
    assert all(value > 0 for name, value in figures.items() if not name.startswith("same_answers"))
    parallel = [figures[f"tokens_per_forward_{name}"] for name in ("0.5", "0.9", "token_by_token")]
    assert parallel == sorted(parallel, reverse=True)
    assert parallel[0] > parallel[2] == 1.0, "the stand-in is sure of some tokens"
    rates = [figures[f"tokens_per_s_{name}"] for name in ("0.5", "token_by_token")]
    assert figures["ratio_0.5"] == pytest.approx(rates[0] / rates[1])

    trained = thresholds.trained_answering(tiny_teacher, num_prompts=1, new_tokens=8, num_rows=2)
    figures = thresholds.measure(trained, 1, (1.0, 0.9))
    assert figures["same_answers_1"] == 1.0
    assert figures["block_accuracy_1"] == figures["block_accuracy_token_by_token"]
    assert figures["block_tokens_per_forward_token_by_token"] == 1.0
    assert figures["block_tokens_per_forward_0.9_by_2"] >= 2 * 7 / 8


@pytest.mark.skipif(not IS_FULL, reason="takes seconds: TIDE_CACHE_TESTS=full")
def test_sampling_is_compared_with_the_teachers():
    torch.set_num_threads(1)
    tiny = {"num_hidden_layers": 2, "vocab_size": 256}
    models = {"student": SMALL_STUDENT | tiny, "wedlm": SMALL_WEDLM | tiny, "llada2": SMALL_LLADA2 | tiny}
    figures = measure(InferenceSize(models, prompt_length=40, new_tokens=8), repeats=1)
    assert all(value > 0 for value in figures.values())
    for teacher in ("wedlm", "llada2"):
        want = figures[f"{teacher}_peak_mib"] / figures["student_peak_mib"]
        assert figures[f"{teacher}_memory_ratio"] == pytest.approx(want)
        rates = [figures[f"{name}_tokens_per_s"] for name in ("student", teacher)]
        assert figures[f"{teacher}_speed_ratio"] == pytest.approx(rates[0] / rates[1])
    assert figures["student_cache_ratio"] == pytest.approx(
        figures["student_tokens_per_s"] / figures["student_uncached_tokens_per_s"]
    )
