"""The chain from teacher logits to a loss, as training runs it, for random samples and for the recorded ones.

Heads are identity matrices: what is recorded, or drawn, as logits passes as hidden states.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.gpu.material import SameIds
from helpers.pair_examples import one_to_one
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.config.settings import SignalKind
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.packing import PackedInput
from tide_cache.objectives import Objective, ids_to_gather
from tide_cache.records import MaskedView, RowStatistics, SampleId, SamplePair, StudentBatch, Targets, ViewRecord
from tide_cache.student.row_statistics import row_statistics
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views import draw_view
from tide_cache.views.masking import spans_to_mask

NO_MASK, NO_PAD = 10_000, 10_001


class GivenLogits(Backbone):
    """Says what it was given, whatever it is shown; samples of equal length keep their order."""

    def __init__(self, logits_BLV: torch.Tensor):
        super().__init__(nn.Identity())
        self._logits_BLV = logits_BLV

    @property
    def head_VD(self) -> torch.Tensor:
        return torch.eye(self._logits_BLV.shape[2], dtype=self._logits_BLV.dtype)

    @property
    def device(self) -> torch.device:
        return self._logits_BLV.device

    def forward(self, packed: PackedInput) -> torch.Tensor:
        assert packed.ids_BS.shape == self._logits_BLV.shape[:2]
        return self._logits_BLV


def capture(
    pairs: Sequence[SamplePair],
    views: Sequence[MaskedView],
    teacher_logits_BLV: torch.Tensor,
    signals: SignalsConfig,
    shared_vocab_size: int,
) -> tuple[StudentBatch, Targets]:
    """Let a teacher with these logits speak, and collate; samples have equal teacher lengths."""
    settings = CaptureSettings("full", 1, NO_MASK, shared_vocab_size, 1, 10**9, 64, signals)
    spelling = SameIds(teacher_logits_BLV.shape[2])
    said = Teacher(GivenLogits(teacher_logits_BLV), settings, spelling).signals(pairs, [[view] for view in views])
    records = [ViewRecord(pair, view, signal) for pair, view, (signal,) in zip(pairs, views, said, strict=True)]
    return collate(records, BatchLayout(NO_MASK, NO_PAD, 1, shared_vocab_size, signals.temperatures))


def statistics_of(logits_NV: torch.Tensor, targets: Targets, temperatures: Sequence[float]) -> RowStatistics:
    """Run the fused head on rows of logits."""
    ids_NK, is_kept_NK = ids_to_gather(targets)
    head_VV = torch.eye(logits_NV.shape[1], dtype=logits_NV.dtype)
    return row_statistics(logits_NV, head_VV, ids_NK, temperatures, is_kept_NK, slice_rows=16)


@dataclass(frozen=True)
class GoldenCase:
    """A recorded case of the reference: what it was given, and what it said.

    Attributes:
        hyper: Its hyper-parameters.
        recorded: Its results, by field name.
        shared: Its inputs, most of them shared by all cases of its file.
        student_logits_BLV: Leaf of the graph.
    """

    hyper: Mapping[str, Any]
    recorded: Mapping[str, np.ndarray]
    shared: Mapping[str, np.ndarray]
    student_logits_BLV: torch.Tensor
    batch: StudentBatch
    targets: Targets

    def mean(self, objective: Objective) -> torch.Tensor:
        """Return an objective's sum over its count; against candidates, only shared ids count, as in the reference."""
        logits_NV = self.student_logits_BLV[self.batch.row_sample_N, self.batch.row_position_N]
        if "topk" in objective.needs.signals:
            logits_NV = logits_NV[:, : self.hyper["shared_vocab_size"]]
        statistics = statistics_of(logits_NV, self.targets, sorted({1.0, *objective.needs.student_temperatures}))
        progress = self.hyper["global_step"] / self.hyper["max_steps"]
        return objective.total(statistics, self.targets, progress) / (objective.count(self.targets) or 1)


@pytest.fixture(scope="session")
def golden_arrays(shared: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """`golden_arrays(name)` gives a recorded file of losses; each is read once."""
    return lru_cache(lambda name: dict(np.load(shared / f"golden/losses_{name}.npz")))


@pytest.fixture(scope="session")
def golden_case(golden_arrays: Callable[[str], dict[str, np.ndarray]]) -> Callable[[str, str], GoldenCase]:
    """`golden_case(family, name)`, with family `alm`, `same` or `aligned`, as golden/README.md names the cases."""

    def load(family: str, name: str) -> GoldenCase:
        arrays = golden_arrays(f"{family}_seed0")
        meta, recorded = _recorded_case(arrays, name)
        return _golden_case(family, meta["hp"], recorded, arrays, name.endswith("-compdemo"))

    return load


@pytest.fixture(scope="session")
def edge_case(golden_arrays: Callable[[str], dict[str, np.ndarray]]) -> Callable[..., GoldenCase]:
    """`edge_case(name)`: the inputs of its family with those of the case on top, and with `ours` above both."""

    def load(name: str, **ours: np.ndarray) -> GoldenCase:
        meta, recorded = _recorded_case(golden_arrays("edge"), name)
        family = "alm" if "alm" in meta["mode"] else "aligned" if "aligned" in meta["mode"] else "same"
        base = golden_arrays(f"{family}_seed0")
        inputs = base | {key: value for key, value in recorded.items() if key in base and key != "meta_json"}
        if "chunk_A" in recorded:
            inputs["teacher_M_A"] = np.stack(
                [spans_to_mask(*rows[is_a, :2].T, base["teacher_mask"].shape[1])
                 for rows, is_a in zip(base["chunks"], recorded["chunk_A"], strict=True)]
            )  # fmt: skip
        hyper = {"global_step": 0, "max_steps": 1} | meta["hp"]
        return _golden_case(family, hyper, recorded, inputs | ours, "chunk_A" in recorded)

    return load


def _recorded_case(arrays: Mapping[str, np.ndarray], name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a file says of a case, and its arrays."""
    meta = next(case for case in json.loads(str(arrays["meta_json"]))["cases"] if case["name"] == name)
    prefix = f"case/{name}/"
    return meta, {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _golden_case(
    family: str,
    hyper: Mapping[str, Any],
    recorded: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    is_compdemo: bool,
) -> GoldenCase:
    student_logits_BLV = torch.from_numpy(inputs["student_logits"]).clone().requires_grad_()
    batch, targets = GOLDEN_TARGETS[family](inputs, hyper, is_compdemo)
    return GoldenCase(hyper, recorded, inputs, student_logits_BLV, batch, targets)


def _chunk_targets(
    at: Mapping[str, np.ndarray], hyper: Mapping[str, Any], is_compdemo: bool
) -> tuple[StudentBatch, Targets]:
    """Two tokenizers: chunks, and the teacher's log-probs of the true tokens."""
    chunks = [rows[:count] for rows, count in zip(at["chunks"], at["n_chunks"], strict=True)]
    pairs, views = _recorded_views(at, at["teacher_input_ids"], at["teacher_mask"], chunks)
    logits_BLV = _teacher_logits(at, is_compdemo, "teacher_M_A")
    return capture(pairs, views, logits_BLV, SignalsConfig(kinds=("truth",), temperatures=(1.0,)), 0)


def _shared_targets(
    at: Mapping[str, np.ndarray], hyper: Mapping[str, Any], is_compdemo: bool
) -> tuple[StudentBatch, Targets]:
    """One tokenizer: every token an aligned pair, every shared id kept."""
    size = hyper["shared_vocab_size"]
    position = np.arange(at["student_input_ids"].shape[1], dtype=np.int32)
    chunks = [np.stack([position, position + 1] * 2, axis=1)] * len(at["t"])
    pairs, views = _recorded_views(at, at["student_input_ids"], at["student_mask"], chunks)
    logits_BLV = _teacher_logits(at, is_compdemo, "M_A")[..., :size]
    temperatures = tuple(sorted({1.0, hyper["kl_temperature"]}))
    return capture(pairs, views, logits_BLV, SignalsConfig(temperatures=temperatures, top_k=size, top_p=1.0), size)


def _aligned_targets(
    at: Mapping[str, np.ndarray], hyper: Mapping[str, Any], is_compdemo: bool
) -> tuple[StudentBatch, Targets]:
    """Two tokenizers that share ids: pairs of positions, every shared id kept; the reference checks no id."""
    position_pairs = [
        np.stack([t[:n], t[:n] + 1, s[:n], s[:n] + 1], axis=1)
        for t, s, n in zip(at["align_teacher"], at["align_student"], at["n_aligned"], strict=True)
    ]
    pairs, views = _recorded_views(at, at["teacher_input_ids"], at["teacher_mask"], position_pairs)
    logits_BLV = _teacher_logits(at, is_compdemo, "teacher_M_A")[..., : hyper["shared_vocab_size"]]
    temperatures = tuple(sorted({1.0, hyper["kl_temperature"]}))
    signals = SignalsConfig(temperatures=temperatures, top_k=hyper["shared_vocab_size"], top_p=1.0)
    return capture(pairs, views, logits_BLV, signals, at["student_logits"].shape[2])


GOLDEN_TARGETS = {"alm": _chunk_targets, "same": _shared_targets, "aligned": _aligned_targets}


def _recorded_views(
    at: Mapping[str, np.ndarray], teacher_ids: np.ndarray, teacher_mask: np.ndarray, chunks: Sequence[np.ndarray]
) -> tuple[list[SamplePair], list[MaskedView]]:
    names = [SampleId(f"sample{b}") for b in range(len(chunks))]
    pairs = [
        SamplePair(names[b], at["student_input_ids"][b], at["labels"][b] != -100, teacher_ids[b], chunks[b])
        for b in range(len(chunks))
    ]
    views = [
        MaskedView(names[b], 0, float(at["t"][b]), at["student_mask"][b], teacher_mask[b]) for b in range(len(chunks))
    ]
    return pairs, views


def _teacher_logits(at: Mapping[str, np.ndarray], is_compdemo: bool, first_group: str) -> torch.Tensor:
    """Under CompDemo each position speaks in the pass in which it was masked; group A is shown in the first."""
    if not is_compdemo:
        return torch.from_numpy(at["teacher_logits"])
    return torch.from_numpy(
        np.where(at[first_group][..., None], at["teacher_logits_pass2"], at["teacher_logits_pass1"])
    )


@dataclass(frozen=True)
class Example:
    """Random samples with all they need: `logits_NV` is a leaf, row by row as in `targets`."""

    pairs: list[SamplePair]
    views: list[MaskedView]
    teacher_logits_BLV: torch.Tensor
    teacher_logits_NV: torch.Tensor
    logits_NV: torch.Tensor
    targets: Targets

    def loss(self, objective: Objective) -> torch.Tensor:
        """Return the objective's sum."""
        temperatures = sorted({1.0, *objective.needs.student_temperatures})
        return objective.total(statistics_of(self.logits_NV, self.targets, temperatures), self.targets)

    def gradient(self, objective: Objective) -> torch.Tensor:
        """Return the sum's gradient in the logits."""
        return torch.autograd.grad(self.loss(objective), self.logits_NV)[0]


@pytest.fixture(scope="session")
def example() -> Callable[..., Example]:
    """Random samples of aligned pairs; `student` gives the student's logits from the teacher's, by default random.

    Whatever `samples` are chosen, each of them is the same as in the whole.
    """

    def make(
        seed: int = 0,
        num_samples: int = 2,
        length: int = 9,
        vocab: int = 12,
        top_k: int = 4,
        top_p: float = 1.0,
        temperatures: tuple[float, ...] = (1.0, 2.0),
        student: Callable[[torch.Tensor], torch.Tensor] | None = None,
        chunk_size: int = 1,
        samples: range | None = None,
        is_supervised: bool = True,
        tail_samples: int = 0,
        chunk_k: int = 0,
        kinds: tuple[SignalKind, ...] = (),
    ) -> Example:
        random = torch.Generator().manual_seed(seed)
        teacher_logits_BLV = 2 * torch.randn(num_samples, length, vocab, generator=random)
        student_logits_BLV = 2 * torch.randn(num_samples, length, vocab, generator=random)
        chosen = list(range(num_samples)) if samples is None else list(samples)
        teacher_logits_BLV, student_logits_BLV = teacher_logits_BLV[chosen], student_logits_BLV[chosen]
        pairs = [_in_chunks(one_to_one(f"sample{b}", length, vocab), chunk_size) for b in chosen]
        pairs = [replace(pair, is_supervised_L=pair.is_supervised_L & is_supervised) for pair in pairs]
        plan = ViewsConfig(num_views=1, seed=seed, time_sampling="uniform", schedule="linear", complementary=False)
        views = [draw_view(pair, 0, plan) for pair in pairs]
        signals = SignalsConfig(
            kinds=kinds or (("truth", "topk", "chunks") if chunk_k else ("truth", "topk")),
            temperatures=tuple(dict.fromkeys(temperatures)),
            top_k=top_k, top_p=top_p, tail_samples=tail_samples, chunk_k=chunk_k,
        )  # fmt: skip
        batch, targets = capture(pairs, views, teacher_logits_BLV, signals, vocab)
        teacher_NV = teacher_logits_BLV[batch.row_sample_N, batch.row_position_N]
        logits_NV = (
            student_logits_BLV[batch.row_sample_N, batch.row_position_N] if student is None else student(teacher_NV)
        )
        return Example(pairs, views, teacher_logits_BLV, teacher_NV, logits_NV.clone().requires_grad_(), targets)

    return make


@pytest.fixture(scope="session")
def pair_in_chunks() -> Callable[[int, int], SamplePair]:
    """`pair_in_chunks(num_tokens, chunk_size)`: a sample of equal chunks, all supervised."""
    return lambda num_tokens, chunk_size: _in_chunks(one_to_one("sample0", num_tokens), chunk_size)


def _in_chunks(pair: SamplePair, size: int) -> SamplePair:
    """Join neighbouring pairs into chunks of `size` tokens."""
    starts = np.arange(0, len(pair.student_ids_L) - size + 1, size, dtype=np.int32)
    chunks_C4 = np.stack([starts, starts + size] * 2, axis=1)
    return replace(pair, chunks_C4=chunks_C4)
