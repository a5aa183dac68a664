"""The pure stages stay pure: arrays and records in, arrays and records out.

No model of a run file, file, clock, DeepSpeed or global random state; the syntax trees of the files are walked, so that
nothing has to be imported or run. The settings that pure stages take are as pure as they are.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PATTERNS = {
    "tide_cache/config/settings.py": {"annotated_types"},
    "tide_cache/config/objectives.py": {"annotated_types"},
    "tide_cache/config/sections.py": {"annotated_types"},
    "tide_cache/config/semantics.py": set(),
    "tide_cache/views/*.py": {"numpy"},
    "tide_cache/objectives/*.py": {"torch"},
    "tide_cache/student/row_statistics.py": {"torch"},
    "tide_cache/student/tiles.py": {"torch"},
    "tide_cache/student/head_way.py": {"torch"},
    "tide_cache/student/fused_head.py": {"torch", "triton"},
    "tide_cache/student/fused_kernels.py": {"triton"},
    "tide_cache/modeling/row_signals.py": {"torch"},
    "tide_cache/modeling/kept.py": {"numpy", "torch"},
    "tide_cache/modeling/moving.py": {"torch"},
    "tide_cache/modeling/batches.py": set(),
    "tide_cache/modeling/attention.py": {"torch"},
    "tide_cache/modeling/experts.py": {"torch"},
    "tide_cache/modeling/packing.py": {"torch"},
    "tide_cache/modeling/head.py": {"torch"},
    "tide_cache/shards/lists.py": {"numpy"},
    "tide_cache/shards/record_columns.py": {"numpy"},
    "tide_cache/shards/codecs.py": {"numpy", "pyarrow"},
    "tide_cache/shards/columns.py": {"numpy", "pyarrow"},
    "tide_cache/shards/compact.py": {"numpy"},
    "tide_cache/shards/value_faults.py": {"numpy"},
    "tide_cache/shards/schema.py": {"pyarrow"},
    "tide_cache/arrays.py": {"numpy"},
    "tide_cache/errors.py": set(),
    "tide_cache/records.py": {"numpy", "torch"},
    "tide_cache/signal_table.py": {"numpy"},
}
"""Pure files, and the libraries each may use. Of this package they may use each other and nothing else."""

PURE = {path: libraries for pattern, libraries in PATTERNS.items() for path in sorted(ROOT.glob(pattern))}
STANDARD = {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "functools",
    "hashlib",
    "itertools",
    "json",
    "math",
    "types",
    "typing",
}
SIDE_EFFECTS = {"open", "print", "input", "exec", "eval", "Path"}
NUMPY_RANDOM = {"Philox"}
TORCH_RANDOM = {
    "manual_seed", "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal",
    "bernoulli", "bernoulli_", "multinomial", "poisson", "dropout", "uniform_", "normal_", "random_", "exponential_",
    "set_default_dtype", "set_default_device", "get_rng_state", "set_rng_state",
}  # fmt: skip


def impurities(tree: ast.Module, libraries: set[str]) -> Iterator[str]:
    """Name everything in a file that a pure one does not have."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {n.name}" for n in names if not may_import(n.name, libraries))
            case ast.ImportFrom(module=str(module), level=0):
                if not may_import(module, libraries):
                    yield f"import {module}"
            case ast.ImportFrom(level=level) if level:
                yield "a relative import"
            case ast.Call(func=ast.Name(id=name)) if name in SIDE_EFFECTS:
                yield f"{name}()"
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"), attr=name):
                if name not in NUMPY_RANDOM:
                    yield f"np.random.{name}"
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="torch"), attr="random"), attr=name):
                yield f"torch.random.{name}"
            case ast.Attribute(attr=name) if name in TORCH_RANDOM:
                yield f".{name}"
            case ast.Global(names=names):
                yield f"global {', '.join(names)}"


def may_import(module: str, libraries: set[str]) -> bool:
    """Tell whether a pure file may import this."""
    root = module.split(".")[0]
    if root == "tide_cache":
        return bool(pure_files(module))
    return module not in {"numpy.random", "torch.random"} and root in STANDARD | libraries


def pure_files(module: str) -> set[Path]:
    """The pure file, or the folder of pure files, that a module of this package is."""
    path = ROOT.joinpath(*module.split("."))
    return {path.with_suffix(".py"), path / "__init__.py"} & set(PURE)


def test_every_pattern_finds_its_files():
    assert all(any(path.match(pattern) for path in PURE) for pattern in PATTERNS)
    assert len(PURE) >= 18


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_files_are_pure(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(impurities(tree, PURE[path])) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time", "import time"),
        ("from random import random", "import random"),
        ("import os.path", "import os.path"),
        ("from pathlib import Path", "import pathlib"),
        ("import deepspeed", "import deepspeed"),
        ("from tide_cache.config.build import BuildRun", "import tide_cache.config.build"),
        ("from tide_cache.teacher.capture import Teacher", "import tide_cache.teacher.capture"),
        ("from tide_cache.shards import encode_pairs", "import tide_cache.shards"),
        ("import pyarrow", "import pyarrow"),
        ("from numpy.random import default_rng", "import numpy.random"),
        ("from . import masking", "a relative import"),
        ("x = open('f')", "open()"),
        ("x = np.random.rand(3)", "np.random.rand"),
        ("x = np.random.default_rng()", "np.random.default_rng"),
        ("x = torch.rand(3)", ".rand"),
        ("x = torch.random.initial_seed()", "torch.random.initial_seed"),
        ("x.uniform_()", ".uniform_"),
        ("torch.manual_seed(0)", ".manual_seed"),
        ("def f():\n    import time\n", "import time"),
        ("def f():\n    global state\n", "global state"),
    ],
)
def test_impure_sources_are_noticed(source, found):
    assert list(impurities(ast.parse(source), {"numpy", "torch"})) == [found]


def test_what_pure_files_use_is_let_through():
    source = "import numpy as np\nfrom tide_cache.records import Targets\nx = np.random.Philox(key=1)\nx.uniform(3)"
    assert list(impurities(ast.parse(source), {"numpy"})) == []
