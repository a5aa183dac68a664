"""On a GPU that is pretended: no operation mixes devices, and the host waits for the device only where it is listed."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from benchmarks.gpu.material import SameIds
from helpers.pretended_gpu import GPU, OnGpu, Pretended, on_gpu
from helpers.teacher_examples import DREAM, FAST_DLLM, LLADA, LLADA2, LLADA_MOE, SDAR, SDAR_MOE, SMALL, WEDLM
from tide_cache.config.objectives import AnyObjective
from tide_cache.config.presets import PRESETS
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.decoding.reveal import RevealRules, reveal_steps
from tide_cache.decoding.sampler import generate
from tide_cache.decoding.step import Commit, DecodingCounts
from tide_cache.evaluation.agreement import teacher_agreement
from tide_cache.evaluation.harness.likelihood import Continuation, continuation_logprobs
from tide_cache.families import FAMILIES
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.modeling.backbone import ADAPTERS, new_backbone
from tide_cache.modeling.mixture import Mixture, MixtureBackbone
from tide_cache.modeling.moving import pinned
from tide_cache.modeling.stock import StockBackbone
from tide_cache.objectives import objective_of
from tide_cache.records import SampleId, SamplePair, ViewRecord
from tide_cache.student.model import Student
from tide_cache.student.row_statistics import row_statistics
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.training.distributed import World
from tide_cache.training.step import train_step
from tide_cache.views import draw_view

MASK_ID, VOCAB, BLOCK = 63, 64, 4
HEAD_ROWS = 8
VIEWS = ViewsConfig(num_views=2, seed=1)
SIGNALS = SignalsConfig(
    kinds=("truth", "topk", "chunks"), temperatures=(1.0, 2.0), top_k=6, top_p=0.9, chunk_k=4, tail_samples=3
)
PROJECTED = replace(SIGNALS, kinds=("truth", "chunks", "projected"), tail_samples=0)
PLAN = CaptureSettings("block", BLOCK, MASK_ID, VOCAB, 2, 160, HEAD_ROWS, SIGNALS)

ALLOWED = {
    "tide_cache/modeling/row_signals.py:wait": (
        2,
        "signals are sorted on the host, which waits for an event; `projected` has its own",
    ),
    "tide_cache/decoding/sampler.py:sample_block": (1, "whether a block is done decides what is launched next"),
    "tide_cache/training/notes.py:read": (1, "after a step is launched, for what ranks had said before its forwards"),
    "tide_cache/decoding/reveal.py:reveal_block": (2, "with a threshold: whether a block is done, and its steps"),
    "tide_cache/evaluation/agreement.py:_statistics": (3, "figures are summed on the host, and nothing is launched"),
    "tide_cache/evaluation/agreement.py:_most_likely": (1, "likewise"),
}
"""Where the host may wait for the device: how often in a forward, and why. A training step waits for notes only."""


def sample(name, sizes):
    """A sample of chunks of (teacher, student) tokens behind two tokens of a prompt."""
    random = np.random.default_rng(len(sizes))
    sizes = np.array([(2, 2), *sizes])
    teacher, student = (np.concatenate([[0], np.cumsum(sizes[:, side])]) for side in (0, 1))
    student_ids = random.integers(0, MASK_ID, student[-1]).astype(np.int32)
    teacher_ids = random.integers(0, MASK_ID, teacher[-1]).astype(np.int32)
    for at, size in enumerate(sizes.tolist()):
        if size == [1, 1]:
            teacher_ids[teacher[at]] = student_ids[student[at]]
    chunks = np.stack([teacher[1:-1], teacher[2:], student[1:-1], student[2:]], axis=1).astype(np.int32)
    return SamplePair(SampleId(name), student_ids, np.arange(student[-1]) >= 2, teacher_ids, chunks)


PAIRS = [
    sample("long", [(1, 1), (1, 1), (2, 1), (1, 1), (2, 2), (1, 2), (1, 1), (1, 1), (2, 2), (1, 1)] * 2),
    sample("short", [(1, 1), (2, 2), (1, 1)]),
    sample("middle", [(1, 1), (1, 1), (1, 1), (2, 2), (1, 1), (1, 2)]),
]
OF_VIEWS = [[draw_view(pair, view, VIEWS) for view in range(2)] for pair in PAIRS]

CONFIGS = {
    "llada2_moe": LLADA2, "llada_moe": LLADA_MOE, "sdar_moe": SDAR_MOE, "llada": LLADA, "Dream": SMALL | DREAM,
    "Fast_dLLM_Qwen": SMALL | FAST_DLLM, "sdar": SMALL | SDAR, "wedlm": SMALL | WEDLM,
}  # fmt: skip


def model_of(name, dtype=torch.float32):
    """A tiny model of a family, the same each time."""
    config = CONFIGS.get(name, SMALL | {"model_type": name}) | {"vocab_size": VOCAB, "pad_token_id": 0}
    adapter = ADAPTERS[name]
    if FAMILIES[name].is_stock:
        model = new_backbone(adapter.read_config(config, "new"), dtype, "cpu", seed=3).model
        return StockBackbone(model, is_shifted=FAMILIES[name].is_shifted)
    model = Mixture(adapter.config_class.model_validate(config))
    generator = torch.Generator().manual_seed(3)
    for weight in model.state_dict().values():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 5)
    return MixtureBackbone(model.to(dtype).requires_grad_(False), is_shifted=FAMILIES[name].is_shifted)


def said(backbone, plan, passes=("plain", "compdemo")):
    """What a teacher says in each pass."""
    teacher = Teacher(backbone, plan, SameIds(VOCAB))
    ask = {
        "plain": lambda: teacher.signals(PAIRS, OF_VIEWS),
        "compdemo": lambda: compdemo_signals(teacher, PAIRS, OF_VIEWS, 0, 0.5),
    }
    return {name: ask[name]() for name in passes}


def arrays(value):
    """All arrays of nested records."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (list, dict)):
        return [array for one in (value.values() if isinstance(value, dict) else value) for array in arrays(one)]
    return [array for one in vars(value).values() if one is not None for array in arrays(one)]


@contextmanager
def pretending():
    """A GPU; afterwards, fail for a mixture of devices, and for a wait beyond those of the table."""
    num_forwards = 0

    def count(*_):
        nonlocal num_forwards
        num_forwards += 1

    with Pretended() as gpu:
        yield lambda model: (model.register_forward_hook(count), on_gpu(model))[1]
    assert not gpu.mixes
    assert num_forwards
    allowed = {place: per_forward * num_forwards for place, (per_forward, _) in ALLOWED.items()}
    beyond = {place for place, waits in gpu.counts().items() if waits > allowed.get(place, 0)}
    assert [seen for seen in gpu.waits if seen.place in beyond] == []


CONTEXTS = [(name, family.native) for name, family in FAMILIES.items()]
CONTEXTS += [(name, "block") for name in ("llama", "llada", "Dream", "llada_moe")] + [
    ("sdar", "full"),
    ("sdar_moe", "full"),
]


@pytest.mark.parametrize(("name", "context"), CONTEXTS)
def test_a_capture_waits_once_for_each_forward(name, context):
    is_mixture = not FAMILIES[name].is_stock
    dtype = torch.bfloat16 if is_mixture else torch.float32  # in float32 a mixture asks for the sizes of its groups
    passes = ("plain", "compdemo") if name in ("sdar", "llada2_moe") else ("plain",)
    plan = replace(PLAN, context=context, signals=PROJECTED if name in ("Dream", "llada2_moe") else SIGNALS)
    expected = said(model_of(name, dtype), plan, passes)
    with pretending() as gpu:
        found = said(gpu(model_of(name, dtype)), plan, passes)
    if is_mixture:  # sums of bfloat16 numbers in another order
        found, expected = (
            [signal.truth_logprobs_N for views in of["plain"] for signal in views] for of in (found, expected)
        )
    for one, other in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.1 if is_mixture else 1e-4, atol=0.1 if is_mixture else 1e-5)


class Engine:
    """What a step needs of an engine."""

    def __init__(self, student, device):
        self.student, self.device = student, device

    def __call__(self, *arguments):
        return self.student(*arguments)

    def backward(self, loss, scale_wrt_gas):
        loss.backward()

    def step(self):
        pass


@pytest.fixture(scope="module")
def records():
    """Views with the signals of both passes, by pass."""
    return {
        name: [
            ViewRecord(pair, view, signal)
            for pair, views, signals in zip(PAIRS, OF_VIEWS, of_pass, strict=True)
            for view, signal in zip(views, signals, strict=True)
        ]
        for name, of_pass in said(model_of("a2d-llama"), PLAN).items()
    }


def stepped(model, entries, records, device, world):
    """Take a step of two micro-batches; gives its sums and the gradients."""
    plan = BatchLayout(MASK_ID, 0, BLOCK, VOCAB, SIGNALS.temperatures)
    batches = [collate(part, plan) for part in (records[:4], records[4:])]
    if device == GPU:
        batches = [(pinned(batch), pinned(targets)) for batch, targets in batches]
    student = Student(model, BLOCK, HEAD_ROWS)
    objectives = [objective_of(entry) for entry in entries]
    sums = vars(train_step(Engine(student, device), batches, objectives, world, 0.5, (1.0, 0.0)))
    notes = torch.tensor(sums.pop("notes").read())
    held = [notes] + [value.held if isinstance(value, OnGpu) else value for value in sums.values()]
    gradients = [weight.grad for weight in student.parameters()]
    return held + [gradient.held if isinstance(gradient, OnGpu) else gradient for gradient in gradients]


ENTRIES = TypeAdapter(list[AnyObjective])
FURTHER = {
    "sampled": [{"kind": "kl", "tail": "sampled"}, {"kind": "reverse_kl", "tail": "sampled", "temperature": 2.0}],
    "others": [{"kind": "kl", "tail": "renormalise"}, {"kind": "bernoulli_kl"}, {"kind": "reverse_calm"}],
    "weighted": [{"kind": "ce", "time_weight": "realised_ratio"}, {"kind": "tidal", "normalise": "weights"}],
}
RUNS = {name: preset.objectives for name, preset in PRESETS.items() if name.startswith("shared")} | FURTHER
WORLDS = [(name, 2 if name == "shared/tide-chunk" else 1) for name in RUNS]


@pytest.mark.parametrize(("name", "size"), WORLDS)
def test_a_step_never_waits(monkeypatch, records, name, size):
    monkeypatch.setattr("tide_cache.training.step.sum_over_ranks", lambda values: values * size)
    preset, world = PRESETS.get(name), World(0, size, 0)
    of_pass = records[preset.signal_pass if preset else "plain"]
    entries = ENTRIES.validate_python(RUNS[name])
    expected = stepped(model_of("a2d-qwen3"), entries, of_pass, torch.device("cpu"), world)
    with pretending() as gpu:
        found = stepped(gpu(model_of("a2d-qwen3")), entries, of_pass, GPU, world)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_head_in_16_bits():
    """As in training: torch's way, whose products are of 16 bits and their sums of 32."""
    random = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(rows, 8, generator=random).bfloat16() for rows in (20, 30))
    ids = torch.rand(20, 30, generator=random).topk(3).indices
    gradients = {}
    with Pretended() as gpu:
        for name in ("host", "gpu"):
            inputs = [OnGpu(part) if name == "gpu" else part for part in (hidden, head, ids)]
            inputs[:2] = [part.requires_grad_() for part in inputs[:2]]
            found = row_statistics(*inputs, (1.0, 2.0), slice_rows=HEAD_ROWS)
            loss = found.gathered_NK.sum() + found.log_z_NT.sum() + found.log_rest_NT.sum()
            gradients[name] = torch.autograd.grad(loss, inputs[:2])
    assert (gpu.mixes, gpu.waits) == ([], [])
    for one, other in zip(gradients["gpu"], gradients["host"], strict=True):
        torch.testing.assert_close(one.held, other, rtol=0.02, atol=0.02)


def written(backbone, counts, **options):
    """Continue two prompts of unlike lengths."""
    prompts = [[1, 2, 3, 4, 5, 6], [7]]
    return generate(
        backbone, prompts, mask_id=MASK_ID, pad_id=0, stop_ids={11}, block_size=BLOCK, max_new_tokens=7,
        steps_per_block=3, generator=torch.Generator().manual_seed(1), counts=counts, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a2d-qwen3", {"threshold": 0.3, "cfg_scale": 0.5}),
        ("Dream", {"temperature": 1.0, "top_p": 0.9}),
        ("a2d-qwen3", {"temperature": 1.0, "context": "full", "keys": ["a", "b"]}),
    ],
)
def test_the_sampler_waits_once_a_step(name, options):
    expected = written(model_of(name), DecodingCounts(), **options)
    with pretending() as gpu:
        found = written(gpu(model_of(name)), DecodingCounts(), **options)
    assert found == expected


@pytest.mark.parametrize(("context", "threshold"), [("block", None), ("full", 0.5)])
def test_revealing_waits_once_a_block_and_with_a_threshold_once_a_step(context, threshold, monkeypatch):
    if threshold is None:
        monkeypatch.setitem(
            ALLOWED, "tide_cache/decoding/reveal.py:reveal_block", (0.5, "three blocks, eight forwards")
        )
    random = np.random.default_rng(0)
    samples = [(random.integers(0, MASK_ID, size), np.arange(size) >= 2) for size in (11, 6)]
    rules = RevealRules(MASK_ID, Commit(BLOCK, 3, threshold), context, 100)
    expected = reveal_steps(model_of("a2d-qwen3"), samples, rules)
    with pretending() as gpu:
        found = reveal_steps(gpu(model_of("a2d-qwen3")), samples, rules)
    assert [steps.tolist() for steps in found] == [steps.tolist() for steps in expected]


def test_a_likelihood_waits_once_a_forward():
    texts = [Continuation([1, 2, 3], [4, 5, 6, 7, 8]), Continuation([9], [10, 11])]
    options = {"mask_id": MASK_ID, "block_size": BLOCK, "num_samples": 4, "seed": 0}
    expected = continuation_logprobs(model_of("a2d-qwen3"), texts, **options)
    with pretending() as gpu:
        found = continuation_logprobs(gpu(model_of("a2d-qwen3")), texts, **options)
    assert found == pytest.approx(expected, rel=1e-4)


def test_measuring_agreement(records):
    plan = BatchLayout(MASK_ID, 0, BLOCK, VOCAB, SIGNALS.temperatures)
    expected = teacher_agreement(model_of("a2d-qwen3"), records["plain"], plan)
    with pretending() as gpu:
        found = teacher_agreement(gpu(model_of("a2d-qwen3")), records["plain"], plan)
    assert found.overall.kl == pytest.approx(expected.overall.kl, rel=1e-4)
