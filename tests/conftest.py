"""Fixtures that several test folders use."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import Qwen3Config

from helpers import fresh
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import Vocabularies, train_vocabularies
from tide_cache.modeling.backbone import new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer

# A busy machine makes drawing slow, which is no fault of the code.
settings.register_profile("tide-cache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tide-cache")

# It also starts one process of a run long after another; nobody waits so long when all goes well.
os.environ.setdefault("TIDE_CACHE_MEET_S", "600")

# A shell that starts the tests in the background has them ignore an interrupt, and with them all that they start.
for number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent

LONGEST_FIRST = (
    "building/test_executors_ray.py",
    "hub/test_local_hub.py",
    "training/test_fresh_processes.py",
    "training/test_world_sizes.py",
    "experiments/test_experiment.py",
    "benchmarks/test_benchmarks.py",
    "demo/test_demo.py",
    "test_packaging.py",
    "cli/test_build_options.py",
    "services/test_object_store.py",
    "building/test_executors.py",
    "faults/test_races.py",
    "cli/test_eval_tasks.py",
    "training/test_capture_parity.py",
    "pairing/test_spelling.py",
    "pairing/test_pairer.py",
    "faults/reading/test_bombs.py",
    "test_fresh.py",
)
"""Else one core would wait for the other's last file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def process_as_at_first() -> None:
    """Let no test be started in what another has left: variables, and how many threads torch uses."""
    fresh.restore_variables()
    if torch.get_num_threads() != 1:  # more wait for each other, at full speed: tiny models take twice the time
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with tokenizers, data and golden numbers; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared material at {folder}; set TIDE_CACHE_SHARED")
    return folder


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    """Two small tokenizers."""
    return train_vocabularies(tmp_path_factory.mktemp("tokenizers"), seed=0)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty generated conversations."""
    path = tmp_path_factory.mktemp("corpus") / "tasks.jsonl"
    write_tasks(path, make_tasks(40, seed=7))
    return path


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, vocabularies: Vocabularies) -> Path:
    """A checkpoint with random weights in the second tokenizer."""
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    backbone = new_backbone(config, torch.float32, "cpu", seed=3)
    folder = tmp_path_factory.mktemp("teacher")
    weights = {name: tensor * 3 for name, tensor in backbone.model.state_dict().items()}
    save_student(folder, weights, config, tokenizer, {})
    return folder


@pytest.fixture(scope="session")
def build_values(corpus_file: Path, tiny_teacher: Path, vocabularies: Vocabularies) -> Callable[..., dict[str, Any]]:
    """Values of a build run file; `build_values(out, pipeline, **changes)` with dotted names for changes."""

    def make(out: Path, pipeline: str = "shared", **changes: Any) -> dict[str, Any]:
        tokenizer = vocabularies.second if pipeline == "shared" else vocabularies.first
        values: dict[str, Any] = {
            "corpus": {"spec": str(corpus_file)},
            "teacher": {"model": str(tiny_teacher), "block_size": 8, "max_length": 64, "dtype": "float32"},
            "student": {"tokenizer": {"path": str(tokenizer)}, "max_length": 64, "block_size": 8},
            "views": {"num_views": 4},
            "signals": {"top_k": 16},
            "build": {"out": str(out), "samples_per_shard": 16, "batch_tokens": 1024},
        }
        for name, value in changes.items():
            section, _, key = name.partition("__")
            values[section][key] = value
        return values

    return make


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory, build_values: Callable[..., dict[str, Any]]) -> Path:
    """A cache for students with the tokenizer of `tiny_teacher`, which can be one too; tests only read it."""
    out = tmp_path_factory.mktemp("tiny") / "cache"
    build_cache(BuildRun.model_validate(build_values(out, signals__temperatures=(1.0, 2.0))))
    return out


NUM_TASKS, NUM_VIEWS = 20, 3


@dataclass(frozen=True)
class Built:
    """A cache and what it was built from."""

    run: BuildRun
    cache: Path
    tokenizer: Path
    other_tokenizer: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A small cache from a teacher with random weights."""
    root = tmp_path_factory.mktemp("built")
    vocabularies = train_vocabularies(root / "vocab", 0)
    write_tasks(root / "tasks.jsonl", make_tasks(NUM_TASKS, seed=3))
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    teacher = new_backbone(config, torch.float32, "cpu", seed=0)
    save_student(root / "teacher", teacher.model.state_dict(), teacher.model.config, tokenizer, {})
    run = BuildRun.model_validate(
        {
            "corpus": {"spec": "tasks.jsonl", "folder": str(root)},
            "teacher": {"model": str(root / "teacher"), "max_length": 64, "dtype": "float32"},
            "student": {"tokenizer": {"path": str(vocabularies.second)}, "max_length": 64, "block_size": 16},
            "views": {"num_views": NUM_VIEWS},
            "signals": {"top_k": 8},
            "build": {"out": str(root / "cache"), "samples_per_shard": 8},
        }
    )
    build_cache(run)
    return Built(run, root / "cache", vocabularies.second, vocabularies.first)


@pytest.fixture
def forking() -> Iterator[None]:
    """Python processes that the code under test starts are forked, and need not import."""
    with fresh.forking():
        yield
