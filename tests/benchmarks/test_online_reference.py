"""Where the reference is right, it says what training from the live teacher says: the comparison of costs is fair."""

import pytest
import torch

from benchmarks.online_reference import OnlineSettings, OnlineTrainer, make_batch
from benchmarks.students import ALONE, Trainee, qwen3_config
from tide_cache.building.prepare import prepare_build
from tide_cache.building.shard import pair_rows
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.config.train import read_objectives
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.loading.source import LiveTeacher
from tide_cache.objectives import objective_of
from tide_cache.pairing import TextTokenizer
from tide_cache.training.step import train_step
from tide_cache.views import draw_view

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
OURS = {
    "kl": {"kind": "kl", "temperature": 2.0},
    "reverse_kl": {"kind": "reverse_kl", "temperature": 2.0},
    "calm": {"kind": "calm", "temperature": 5.0},
    "reverse_calm": {"kind": "reverse_calm", "temperature": 5.0},
    "tidal_kl": {"kind": "tidal", "over": "kl", "temperature": 2.0, "time_weight": "midrange"},
    "tidal_calm": {"kind": "tidal", "over": "calm", "temperature": 5.0, "time_weight": "midrange"},
}


def paper(entry):
    return objective_of(*read_objectives([entry], "paper"))


@pytest.mark.parametrize(
    ("pipeline", "context", "method", "compdemo"),
    [
        ("shared", "block", "kl", False),
        ("shared", "block", "reverse_kl", False),
        ("shared", "block", "tidal_kl", True),
        ("shared", "full", "calm", False),
        ("cross", "full", "calm", False),
        ("cross", "full", "reverse_calm", False),
        ("cross", "full", "tidal_calm", True),
    ],
)
def test_the_reference_and_ours_have_the_same_losses(build_values, tmp_path, pipeline, context, method, compdemo):
    values = build_values(
        tmp_path / "cache", pipeline, signals__top_k=512, signals__top_p=1.0, signals__temperatures=(1.0, 2.0),
        teacher__context=context,
    )  # fmt: skip
    run = BuildRun.model_validate(values)
    build = prepare_build(run)
    pairs = pair_rows(build, 0).pairs[:5]
    views = [draw_view(pair, 0, build.views) for pair in pairs]
    teacher = load_teacher(run, build, "cpu")
    student = TextTokenizer.load(**values["student"]["tokenizer"])
    temperatures = build.identity.signals.temperatures
    layout = BatchLayout(
        student.mask_id, student.pad_id, 8, build.identity.pairing.shared_vocab_size, temperatures, "linear"
    )
    source = LiveTeacher(pairs, build.views, teacher, demo_ratio=build.views.demo_ratio if compdemo else None)
    batch = collate(source.records(range(5), 0), layout)
    trainee = Trainee(qwen3_config(student.vocab_size, **SHAPE), block_size=8, micro_batch=5)
    settings = OnlineSettings(
        method, OURS[method]["temperature"], context, compdemo, block_size=8, student_mask_id=student.mask_id,
        teacher_mask_id=build.capture.mask_id, pad_id=student.pad_id,
        shared_vocab_size=build.identity.pairing.shared_vocab_size, demo_ratio=build.views.demo_ratio,
    )  # fmt: skip
    reference = OnlineTrainer(trainee.backbone, teacher._backbone, settings)
    found = [
        float(x.detach()) for x in reference.losses(make_batch(pairs, views, settings, "cpu", build.views.seed), 0.3)
    ]
    sums = train_step(trainee.engine, [batch], [paper({"kind": "ce"}), paper(OURS[method])], ALONE, progress=0.3)
    want_O = sums.totals_O / sums.counts_O
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), want_O, rtol=2e-4, atol=1e-6)
