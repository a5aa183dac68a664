"""Figures of sampling are there and consistent; the teachers keep the published ratio of weights."""

import pytest
import torch

from benchmarks.inference import InferencePlan, measure
from benchmarks.published_shapes import SMALL_LLADA2, SMALL_STUDENT, SMALL_WEDLM


def test_sampling_is_compared_with_the_teachers():
    torch.set_num_threads(1)
    tiny = {"num_hidden_layers": 2, "vocab_size": 256}
    models = {"student": SMALL_STUDENT | tiny, "wedlm": SMALL_WEDLM | tiny, "llada2": SMALL_LLADA2 | tiny}
    figures = measure(InferencePlan(models, prompt_length=40, new_tokens=8), repeats=1)
    assert all(value > 0 for value in figures.values())
    for teacher in ("wedlm", "llada2"):
        want = figures[f"{teacher}_peak_mib"] / figures["student_peak_mib"]
        assert figures[f"{teacher}_memory_ratio"] == pytest.approx(want)
        rates = [figures[f"{name}_tokens_per_s"] for name in ("student", teacher)]
        assert figures[f"{teacher}_speed_ratio"] == pytest.approx(rates[0] / rates[1])
    assert figures["student_cache_ratio"] == pytest.approx(
        figures["student_tokens_per_s"] / figures["student_uncached_tokens_per_s"]
    )
