"""What a model of the demonstration can do: held-out NLL and accuracy, and answers checked against the tasks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from tide_cache.corpus import open_corpus
from tide_cache.demo.design import BLOCK_SIZE, MAX_LENGTH, TIMES, DemoSize
from tide_cache.demo.stages import HELD_OUT_SEED, DemoFolder
from tide_cache.demo.tasks import is_checkable, is_correct, make_tasks
from tide_cache.evaluation import NllReport, generate_text
from tide_cache.evaluation.measuring import measure
from tide_cache.evaluation.trained import TrainedModel
from tide_cache.modeling.backbone import read_checkpoint
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.records import Message

MAX_NEW_TOKENS = 32
PARTS = 10
"""Parts of the held-out tasks with separate figures, for an interval without a second seed."""


@dataclass(frozen=True)
class Measured:
    """Figures of one model on the held-out tasks.

    Attributes:
        nll: Mean over the grid of t, nats per masked token.
        nll_by_part: The same for ten parts of the tasks; empty if a part would have fewer than ten.
        nll_at: NLL at each t of the grid.
        accuracy: Token accuracy, mean over the grid.
        exact_match: Share of tasks with one right answer that were answered exactly.
    """

    nll: float
    nll_by_part: tuple[float, ...]
    nll_at: dict[str, float]
    accuracy: float
    exact_match: float


def measured(folder: DemoFolder, size: DemoSize, model: Path, tokenizer: Path) -> Measured:
    """Measure a model, or read its earlier figures.

    Args:
        folder: Folder of the demonstration.
        size: Sizes of the demonstration.
        model: Folder of the saved model.
        tokenizer: Folder of the model's tokenizer.
    """
    file = model.parent / "measured.json"
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        return Measured(**known | {"nll_by_part": tuple(known["nll_by_part"])})
    text = TextTokenizer.load(str(tokenizer))
    trained = TrainedModel(read_checkpoint(str(model)), text, BLOCK_SIZE, device="cpu")
    rows = list(open_corpus(str(folder.tasks("held-out")), folder=folder.root))
    paired = encode_student(rows, text, max_length=MAX_LENGTH, block_size=BLOCK_SIZE, fill_last_block=True)
    num_parts = PARTS if len(paired.pairs) >= 10 * PARTS else 1
    reports = [measure(trained, paired.pairs[part::num_parts], times=TIMES).nll for part in range(num_parts)]
    tasks = [task for task in make_tasks(size.held_out_samples, HELD_OUT_SEED) if is_checkable(task.kind)]
    tasks = tasks[: size.exact_samples]
    answers = generate_text(
        trained.backbone,
        text,
        [[Message("user", task.question)] for task in tasks],
        block_size=BLOCK_SIZE,
        max_new_tokens=MAX_NEW_TOKENS,
        steps_per_block=BLOCK_SIZE // 2,
    )
    nll_at, accuracy_at = _at_times(reports)
    result = Measured(
        nll=mean(nll_at.values()),
        nll_by_part=tuple(_mean_nll(report) for report in reports) if num_parts > 1 else (),
        nll_at=nll_at,
        accuracy=mean(accuracy_at.values()),
        exact_match=sum(is_correct(task, text) for task, text in zip(tasks, answers, strict=True)) / len(tasks),
    )
    file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def _at_times(parts: list[NllReport]) -> tuple[dict[str, float], dict[str, float]]:
    """Return NLL and accuracy at each t, over all parts, each weighted by its masked tokens."""
    nll_at, accuracy_at = {}, {}
    for entries in zip(*(part.times for part in parts), strict=True):
        num_masked = sum(entry.num_masked for entry in entries)
        name = f"{entries[0].t:g}"
        nll_at[name] = sum(entry.num_masked * (entry.nll or 0) for entry in entries) / num_masked
        accuracy_at[name] = sum(entry.num_masked * (entry.accuracy or 0) for entry in entries) / num_masked
    return nll_at, accuracy_at


def _mean_nll(report: NllReport) -> float:
    assert report.mean_nll is not None, "some t masks no token of a part"
    return report.mean_nll
