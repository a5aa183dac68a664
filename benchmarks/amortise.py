"""What the paper's six distilled runs cost in all: online, or as one capture for each teacher and six trainings.

With E epochs over N samples in batches of B, V views of each sample captured in both passes, and measured seconds
s_online(run), s_ours(run) of a step and c_plain, c_compdemo of capturing a view:

    online = sum over runs of E N / B * s_online(run)
    ours   = sum over teachers of N V (c_plain + c_compdemo) + sum over runs of E N / B * s_ours(run)

Both are given for one sample, in seconds; writing the cache is the 5 % bar of `build`, and is not in it.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.material import SameIds
from benchmarks.material import VIEWS, write_cache
from benchmarks.online import ROWS, SMALL, Setting, measure_time
from benchmarks.options import Options
from benchmarks.published_shapes import random_backbone
from benchmarks.timing import Timings
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.backbone import DTYPES
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.views import draw_view

EPOCHS, NUM_VIEWS = 10, 8
"""The paper's epochs; and the views with which frozen masks train as well as fresh ones."""


def run(options: Options) -> dict[str, float]:
    """Measure the parts on two CPU cores, with small models, and put them together."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for setting in SMALL:
        figures |= measure_parts(setting, options.repeats)
    return figures | totals(figures, SMALL[0].micro_batch)


def measure_parts(setting: Setting, repeats: int) -> dict[str, float]:
    """Return seconds of the steps of a pipeline, and of capturing a view in each pass."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "cache")
        write_cache(root, setting.shape)
        figures = measure_time(setting, root, repeats)
        steps = {name: value for name, value in figures.items() if name.endswith("_step_s")}
        return steps | measure_capture(setting, root, repeats)


def measure_capture(setting: Setting, root: Path, repeats: int) -> dict[str, float]:
    """Return seconds for capturing a view of a sample in each pass, several views at once as a build does.

    Across tokenizers with candidates of chunks, whose sorting is part of it; their spelling is not: ids are the same.
    """
    backbone = random_backbone(setting.teacher, DTYPES[setting.precision], setting.device)
    config, row = replace(VIEWS, num_views=NUM_VIEWS), setting.settings(setting.rows[0])
    has_topk = setting.pipeline == "shared"
    teacher = Teacher(
        backbone,
        CaptureSettings(
            context=row.context,
            block_size=row.block_size,
            mask_id=row.teacher_mask_id,
            shared_vocab_size=row.shared_vocab_size,
            views_per_forward=4,
            batch_tokens=16384,
            head_rows=1024,
            signals=SignalsConfig(kinds=("truth", "topk" if has_topk else "chunks"), top_p=1.0),
        ),
        SameIds(setting.student["vocab_size"]),
    )
    pairs = [record.pair for record in setting.records(root)]
    views = [[draw_view(pair, number, config) for number in range(NUM_VIEWS)] for pair in pairs]
    work = {
        "plain": lambda: teacher.signals(pairs, views),
        "compdemo": lambda: compdemo_signals(teacher, pairs, views, config.seed, row.demo_ratio),
    }
    timings = Timings(work, repeats, of_cpu=setting.device == "cpu")
    num_views = len(pairs) * NUM_VIEWS
    return {f"{setting.pipeline}_capture_{name}_s_per_view": 1 / timings.rate(name, num_views) for name in work}


def totals(parts: dict[str, float], micro_batch: int) -> dict[str, float]:
    """Put measured parts together; see the head of this file.

    Args:
        parts: Figures of `measure_parts` for both pipelines.
        micro_batch: B.
    """
    per_step = EPOCHS / micro_batch
    online = sum(per_step * parts[f"{row}_online_step_s"] for row in ROWS)
    training = sum(per_step * parts[f"{row}_ours_step_s"] for row in ROWS)
    per_view = sum(value for name, value in parts.items() if name.endswith("_s_per_view"))
    ours = NUM_VIEWS * per_view + training
    return {
        **parts,
        "online_total_s_per_sample": online,
        "ours_capture_s_per_sample": NUM_VIEWS * per_view,
        "ours_training_s_per_sample": training,
        "ours_total_s_per_sample": ours,
        "amortise_ratio": online / ours,
        "epochs": EPOCHS,
        "views": NUM_VIEWS,
        "runs": len(ROWS),
    }
