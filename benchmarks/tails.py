"""How far a loss over a few kept ids is from the loss over the whole vocabulary, for three ways to treat the rest.

A teacher and a student look at the same masked views of held-out text, once each. Then every objective is computed
twice: from all logits, in float64, and as training does it, from what a cache keeps of the teacher and what the fused
head gives of the student. Errors are by diffusion time; and, since a small teacher is unsure of much, once more with
both models' logits made larger.

Shape suffixes as in `tide_cache.records`; V vocabulary, W hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from benchmarks.options import ROOT, MaterialMissing, Options, shared_file
from tide_cache.config.objectives import Tail
from tide_cache.config.sections import SignalsConfig
from tide_cache.corpus import open_corpus
from tide_cache.evaluation.trained import TrainedModel, open_trained
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.modeling.adapter import evaluating
from tide_cache.modeling.backbone import Backbone, load_backbone
from tide_cache.modeling.packing import PackedInput
from tide_cache.modeling.rows import masked_hidden
from tide_cache.objectives import Objective, ids_to_gather
from tide_cache.objectives.kl import ForwardKL, ReverseKL
from tide_cache.objectives.tidal import Tidal
from tide_cache.pairing import encode_student
from tide_cache.records import MaskedView, SampleId, SamplePair, Targets, ViewRecord
from tide_cache.shards import ShardHeader, ShardRules, encode_signals
from tide_cache.shards.record_columns import columns_to_views, signals_to_columns
from tide_cache.student.row_statistics import row_statistics
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views.random import KeyedRandom

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
TEMPERATURES = (1.0, 2.0)
TRUST = 0.5
"""Share of the teacher in TIDAL's mixture."""
SHARPNESS = 3.0
"""Factor on both models' logits, in figures named `sharp`: what a surer teacher's tail is like."""
SAMPLES, ROWS_PER_TIME, MAX_LENGTH = 60, 200, 128
EXACT_ROWS = 16
BATCH_VIEWS, SLICE_ROWS = 16, 64
TEACHER = ROOT / "runs/gsm8k-cpu/teacher/model"
STUDENT = ROOT / "runs/gsm8k-cpu/students/shared/ce/seed-0/model"


@dataclass(frozen=True)
class Truncation:
    """One way to keep a part of the teacher's distribution; the fields are those of `SignalsConfig`."""

    name: str
    top_k: int
    top_p: float = 1.0
    tail_samples: int = 0
    logprob_dtype: Literal["float16", "float32"] = "float32"


TRUNCATIONS = (
    *(Truncation(f"k{k}", k, tail_samples=16 if k in (8, 64) else 0) for k in (8, 16, 32, 64, 128)),
    *(Truncation(f"p{top_p}", 1024, top_p) for top_p in (0.9, 0.99, 0.999, 0.9999)),
    Truncation("k64_float16", 64, logprob_dtype="float16"),
)


@dataclass(frozen=True, eq=False)
class Rows:
    """What both models made of masked tokens: hidden states, and the heads that turn them into logits.

    Attributes:
        t_N: Diffusion time of each row's view.
        true_N: Token under each mask.
        teacher_NW: Teacher's hidden states.
        student_NW: Student's, of another size.
        teacher_head_VW: Teacher's output weight.
        student_head_VW: Student's.
    """

    t_N: torch.Tensor
    true_N: torch.Tensor
    teacher_NW: torch.Tensor
    student_NW: torch.Tensor
    teacher_head_VW: torch.Tensor
    student_head_VW: torch.Tensor

    def at(self, index_N: torch.Tensor) -> "Rows":
        """Return some of the rows."""
        of_rows = ("t_N", "true_N", "teacher_NW", "student_NW")
        return replace(self, **{name: getattr(self, name)[index_N] for name in of_rows})

    def sharpened(self, factor: float) -> "Rows":
        """Multiply the logits of both models."""
        return replace(self, teacher_NW=factor * self.teacher_NW, student_NW=factor * self.student_NW)


@dataclass(frozen=True, eq=False)
class _Cell:
    """Rows that are measured together."""

    t: float
    rows: Rows


@dataclass(frozen=True, eq=False)
class _Value:
    """One objective: the loss of each cell, its gradient in the student's hidden states, and in its output weight."""

    losses: tuple[float, ...]
    hidden: tuple[torch.Tensor, ...]
    head_VW: torch.Tensor


def run(options: Options) -> dict[str, float]:
    """Let the two models look at held-out text, and compare."""
    teacher, student = _open(options.teacher, TEACHER), _open(options.student, STUDENT)
    return measure(look(teacher, student, options.rows))


def measure(rows: Rows, truncations: Sequence[Truncation] = TRUNCATIONS) -> dict[str, float]:
    """Compare every truncation with the whole vocabulary: by t, with larger logits, and a few rows at k = V."""
    times = [_Cell(round(float(t), 6), rows.at((rows.t_N == t).nonzero().squeeze(1))) for t in rows.t_N.unique()]
    few_N = torch.from_numpy(KeyedRandom("exact", 0).permutation(len(rows.t_N))[:EXACT_ROWS])
    half_N = torch.arange(0, len(rows.t_N), 2)
    sharp = _figures([_Cell(1.0, rows.at(half_N).sharpened(SHARPNESS))], truncations)
    exact = _figures([_Cell(1.0, rows.at(few_N))], [Truncation("everything", len(rows.teacher_head_VW))])
    figures = _figures(times, truncations) | {f"sharp.{name}": value for name, value in sharp.items()} | exact
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


# Looking at text.


def _open(given: Path | None, usual: Path) -> TrainedModel:
    folder = usual if given is None else given
    if not (folder / "config.json").is_file():
        raise MaterialMissing(
            f"{folder} holds no model. `python examples/gsm8k-cpu/run.py` trains a teacher and its students under "
            "runs/gsm8k-cpu; --teacher and --student name others, of one tokenizer."
        )
    return open_trained(str(folder), as_trained=False)


def look(teacher: TrainedModel, student: TrainedModel, max_samples: int) -> Rows:
    """Mask GSM8K test at every t, run each model on it, and keep `ROWS_PER_TIME` rows of each t.

    Raises:
        MaterialMissing: There is no text, or the models have two tokenizers.
    """
    folders = teacher.info.location, student.info.location
    if len({Path(folder, "tokenizer.json").read_bytes() for folder in folders}) > 1:
        raise MaterialMissing(f"{folders[0]} and {folders[1]} have different tokenizers; expected one for both.")
    corpus = open_corpus(str(shared_file("data/gsm8k_test.jsonl")), folder=ROOT)
    texts = list(corpus.rows(0, min(max_samples, SAMPLES, len(corpus))))
    sizes = {"max_length": MAX_LENGTH, "block_size": student.block_size}
    pairs = encode_student(texts, student.tokenizer, **sizes, fill_last_block=True).pairs
    records = [ViewRecord(pair, _view(pair, view), None) for view in range(len(TIMES)) for pair in pairs]
    layout = BatchLayout(student.tokenizer.mask_id, student.tokenizer.pad_id, student.block_size)
    targets = collate(records, layout)[1]
    teacher_NW, teacher_head_VW = _hidden(teacher, records, layout)
    student_NW, student_head_VW = _hidden(student, records, layout)
    rows = Rows(targets.t_N, targets.true_id_N, teacher_NW, student_NW, teacher_head_VW, student_head_VW)
    order_N = torch.from_numpy(KeyedRandom("rows", 0).permutation(len(rows.t_N)))
    return rows.at(torch.cat([order_N[rows.t_N[order_N] == t][:ROWS_PER_TIME] for t in rows.t_N.unique()]))


def _view(pair: SamplePair, view: int) -> MaskedView:
    uniform_L = KeyedRandom("tails", 0, pair.sample_id, view).uniform(len(pair.student_ids_L))
    is_masked_L = (uniform_L < np.float32(TIMES[view])) & pair.is_supervised_L
    return MaskedView(pair.sample_id, view, TIMES[view], is_masked_L, np.zeros(len(pair.teacher_ids_M), bool))


def _hidden(
    model: TrainedModel, records: Sequence[ViewRecord], layout: BatchLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a model's hidden states at all masked tokens, and its output weight."""
    backbone = load_backbone(model.info, torch.float32, "cpu")
    with evaluating(backbone):
        parts = [
            masked_hidden(backbone, collate(records[start : start + BATCH_VIEWS], layout)[0], model.block_size)
            for start in range(0, len(records), BATCH_VIEWS)
        ]
    return torch.cat(parts), backbone.head_VD.detach()


# Over the whole vocabulary.


def _kl_terms(q_RV: torch.Tensor, p_RV: torch.Tensor) -> torch.Tensor:
    return p_RV.exp() * (p_RV - q_RV)


def _reverse_kl_terms(q_RV: torch.Tensor, p_RV: torch.Tensor) -> torch.Tensor:
    return q_RV.exp() * (q_RV - p_RV)


def _tidal_terms(q_RV: torch.Tensor, p_RV: torch.Tensor) -> torch.Tensor:
    return _kl_terms(q_RV, ((1 - TRUST) * q_RV.detach() + TRUST * p_RV).log_softmax(dim=1))


_WHOLE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kl": _kl_terms,
    "reverse_kl": _reverse_kl_terms,
    "tidal": _tidal_terms,
}


def _whole(cells: Sequence[_Cell], kind: str, temperature: float) -> _Value:
    """Compute an objective from all logits, in float64."""
    head_VW = cells[0].rows.student_head_VW.double().requires_grad_()
    teacher_head_VW = cells[0].rows.teacher_head_VW.double()
    losses, hidden, of_head_VW = [], [], torch.zeros_like(head_VW)
    for cell in cells:
        loss, gradients = 0.0, []
        for student_RW, teacher_RW in zip(
            cell.rows.student_NW.split(SLICE_ROWS), cell.rows.teacher_NW.split(SLICE_ROWS), strict=True
        ):
            hidden_RW = student_RW.double().requires_grad_()
            q_RV = (hidden_RW @ head_VW.T / temperature).log_softmax(dim=1)
            p_RV = (teacher_RW.double() @ teacher_head_VW.T / temperature).log_softmax(dim=1)
            total = temperature**2 * _WHOLE[kind](q_RV, p_RV).sum()
            gradient_RW, gradient_VW = torch.autograd.grad(total, (hidden_RW, head_VW))
            loss += total.item()
            gradients.append(gradient_RW)
            of_head_VW += gradient_VW
        losses.append(loss)
        hidden.append(torch.cat(gradients))
    return _Value(tuple(losses), tuple(hidden), of_head_VW)


# Over what is kept.


class _Spoken(Backbone):
    """Says again what the teacher said of these rows."""

    def __init__(self, rows: Rows):
        super().__init__(nn.Identity())
        self._rows = rows

    @property
    def head_VD(self) -> torch.Tensor:
        return self._rows.teacher_head_VW

    def forward(self, packed: PackedInput) -> torch.Tensor:
        return self._rows.teacher_NW[None]


def _objectives(kind: str, temperature: float, has_draws: bool) -> dict[Tail, Objective]:
    """Return an objective with every tail that it has."""
    if kind == "tidal":
        mixed = Tidal(temperature=temperature, axes="training_only", lambda_init=TRUST, lambda_max=TRUST)
        return {"rest": mixed, "renormalise": replace(mixed, tail="renormalise")}
    one: type[ForwardKL] | type[ReverseKL] = ForwardKL if kind == "kl" else ReverseKL
    tails: tuple[Tail, ...] = ("rest", "renormalise", "sampled") if has_draws else ("rest", "renormalise")
    return {tail: one(temperature, tail) for tail in tails}


def _captured(cells: Sequence[_Cell], truncation: Truncation) -> list[ViewRecord]:
    """Return what a cache with this truncation says of each cell, as if its rows were one sample."""
    vocab_size = len(cells[0].rows.teacher_head_VW)
    signals = SignalsConfig(
        temperatures=TEMPERATURES,
        top_k=min(truncation.top_k, vocab_size),
        top_p=truncation.top_p,
        tail_samples=truncation.tail_samples,
    )
    capture = CaptureSettings("full", 1, 0, vocab_size, 1, 10**9, SLICE_ROWS, signals)
    records = []
    for index, cell in enumerate(cells):
        ids_N = cell.rows.true_N.numpy().astype(np.int32)
        position_N, is_masked_N = np.arange(len(ids_N), dtype=np.int32), np.ones(len(ids_N), bool)
        chunks_C4 = np.stack([position_N, position_N + 1] * 2, axis=1)
        pair = SamplePair(SampleId(f"cell{index}"), ids_N, is_masked_N, ids_N, chunks_C4)
        view = MaskedView(pair.sample_id, 0, cell.t, is_masked_N, is_masked_N)
        ((signal,),) = Teacher(_Spoken(cell.rows), capture).signals([pair], [[view]])
        stored = signals_to_columns([index], [ViewRecord(pair, view, signal)], truncation.logprob_dtype)
        records += columns_to_views(stored, [pair], len(TEMPERATURES))
    return records


def _kept(
    cells: Sequence[_Cell], targets: Sequence[Targets], objectives: Mapping[Tail, Objective], temperature: float
) -> Iterator[tuple[Tail, _Value]]:
    """Compute an objective with every tail, as training does."""
    head_VW = cells[0].rows.student_head_VW.clone().requires_grad_()
    leaves = [cell.rows.student_NW.clone().requires_grad_() for cell in cells]
    statistics = []
    for hidden_NW, of_cell in zip(leaves, targets, strict=True):
        ids_NK, is_kept_NK = ids_to_gather(of_cell)
        statistics.append(row_statistics(hidden_NW, head_VW, ids_NK, (temperature,), is_kept_NK, SLICE_ROWS))
    for tail, objective in objectives.items():
        totals = [objective.total(one, of_cell) for one, of_cell in zip(statistics, targets, strict=True)]
        gradients = torch.autograd.grad(torch.stack(totals).sum(), (*leaves, head_VW), retain_graph=True)
        yield tail, _Value(tuple(total.item() for total in totals), gradients[:-1], gradients[-1])


# Figures.


def _figures(cells: Sequence[_Cell], truncations: Sequence[Truncation]) -> dict[str, float]:
    """Name figures `objective.T.truncation.tail.group.figure`; of a truncation alone `truncation.group.figure`."""
    figures: dict[str, float] = {}
    spoken = {truncation.name: _captured(cells, truncation) for truncation in truncations}
    vocab_size = len(cells[0].rows.teacher_head_VW)
    collation = BatchLayout(0, 0, 1, vocab_size, TEMPERATURES)
    targets = {name: [collate([record], collation)[1] for record in records] for name, records in spoken.items()}
    for truncation in truncations:
        figures |= _sizes(truncation, cells, targets[truncation.name], spoken[truncation.name])
    for kind in _WHOLE:
        for temperature in TEMPERATURES:
            whole = _whole(cells, kind, temperature)
            for truncation in truncations:
                objectives = _objectives(kind, temperature, truncation.tail_samples > 0)
                for tail, kept in _kept(cells, targets[truncation.name], objectives, temperature):
                    name = f"{kind}.T{temperature:g}.{truncation.name}.{tail}"
                    figures |= {f"{name}.{what}": value for what, value in _errors(cells, kept, whole).items()}
    return figures


def _sizes(
    truncation: Truncation, cells: Sequence[_Cell], targets: Sequence[Targets], records: Sequence[ViewRecord]
) -> dict[str, float]:
    """Return means over rows: kept ids, probability of the likeliest, mass outside at each T, and stored bytes."""
    figures: dict[str, float] = {}
    for group, members in _groups(cells).items():
        chosen = [targets[c] for c in members]
        kept_N = torch.cat([(one.topk.kept_ids_NK >= 0).sum(dim=1).double() for one in chosen])
        top_N = torch.cat([one.topk.kept_logprobs_NK[:, 0].double().exp() for one in chosen])
        outside_NT = torch.cat([(one.topk.log_tail_NT - one.topk.log_partition_NT).double().exp() for one in chosen])
        name = f"{truncation.name}.{group}"
        figures |= {f"{name}.rows": len(kept_N), f"{name}.kept_ids": float(kept_N.mean())}
        figures[f"{name}.top_pct"] = 100 * float(top_N.mean())
        for temperature, mass in zip(TEMPERATURES, outside_NT.mean(dim=0).tolist(), strict=True):
            figures[f"{name}.outside_pct_T{temperature:g}"] = 100 * mass
    vocab_size, num_rows = len(cells[0].rows.teacher_head_VW), figures[f"{truncation.name}.all.rows"]
    rules = ShardRules(
        1, vocab_size, vocab_size, TEMPERATURES, frozenset({"topk", "tail"} if truncation.tail_samples else {"topk"})
    )
    header = ShardHeader("tails", "tails", "plain", 0)
    columns = encode_signals(
        header, range(len(records)), [[record] for record in records], rules, "float16"
    ).column_bytes
    for part in ("topk", "tail"):
        size = sum(size for name, size in columns.items() if name.startswith(f"{part}_"))
        figures |= {f"{truncation.name}.{part}_bytes_per_row": size / num_rows} if size else {}
    return figures


def _groups(cells: Sequence[_Cell]) -> dict[str, Sequence[int]]:
    """Return the cells of each group: everything, and each t where there are several."""
    each = {f"t{cell.t:g}": [c] for c, cell in enumerate(cells)} if len(cells) > 1 else {}
    return {**each, "all": range(len(cells))}


def _errors(cells: Sequence[_Cell], kept: _Value, whole: _Value) -> dict[str, float]:
    """Return signed errors of losses, relative L2 errors of gradients, in percent, and cosines of gradients."""
    figures: dict[str, float] = {}
    for group, members in _groups(cells).items():
        want_M = torch.cat([whole.hidden[c].flatten() for c in members])
        found_M = torch.cat([kept.hidden[c].flatten() for c in members]).double()
        ratio = sum(kept.losses[c] for c in members) / sum(whole.losses[c] for c in members)
        figures[f"{group}.loss_pct"] = 100 * (ratio - 1)
        figures[f"{group}.gradient_pct"] = _distance(found_M, want_M)
        if group == "all":
            figures[f"{group}.gradient_cosine"] = float(torch.cosine_similarity(found_M, want_M, dim=0))
    figures["all.head_gradient_pct"] = _distance(kept.head_VW.double(), whole.head_VW)
    return figures


def _distance(found: torch.Tensor, want: torch.Tensor) -> float:
    return 100 * float((found - want).norm() / want.norm())
