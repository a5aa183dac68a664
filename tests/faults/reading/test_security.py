"""No data can run code: the calls that would let it are not in ours. Syntax trees are walked, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = [path for folder in ("tide_cache", "cli", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "code",
    "codeop",
    "runpy",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle",
    "pandas.read_pickle", "subprocess.getoutput", "subprocess.getstatusoutput",
    "torch.hub.load", "tempfile.mktemp", "np.fromregex", "numpy.load", "np.load",
}  # fmt: skip
RUNNER = "tide_cache/evaluation/harness/sandbox_runner.py"
"""Runs programs that a model wrote, which is what it is for: on consent, as a process of its own, shut in."""
KEYWORDS = {"trust_remote_code", "shell", "allow_pickle", "allow_unsafe"}
"""May only be given as the constant False."""


def findings(tree: ast.Module) -> Iterator[str]:
    """Name everything in a file through which data could run code."""
    renamed: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {n.name}" for n in names if n.name.split(".")[0] in MODULES)
                renamed |= {n.asname: n.name for n in names if n.asname}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                if module.split(".")[0] in MODULES:
                    yield f"from {module}"
                renamed |= {n.asname or n.name: f"{module}.{n.name}" for n in names}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=function, args=arguments, keywords=keywords):
                name = ast.unparse(function)
                head, dot, rest = name.partition(".")
                full = renamed.get(head, head) + dot + rest
                if name in BUILTINS or full in CALLS or name in CALLS:
                    yield f"{full}()"
                if full == "importlib.import_module" and not isinstance(arguments[0], ast.Constant):
                    yield f"{full}() of a computed name"
                yield from (f"{k.arg}=" for k in keywords if k.arg in KEYWORDS and not is_false(k.value))
            case ast.Attribute(attr="__reduce__" | "__reduce_ex__" | "__globals__" | "__subclasses__" as name):
                yield name
            case ast.FunctionDef(name="__reduce__" | "__reduce_ex__" | "__setstate__" as name):
                yield f"def {name}"


def is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_nothing_in_our_code_lets_data_run_code():
    assert len(FILES) > 100
    found = [
        f"{path.relative_to(ROOT)}: {finding}" for path in FILES for finding in findings(ast.parse(path.read_text()))
    ]
    by_name = "tide_cache/__init__.py: importlib.import_module() of a computed name"  # of the table in that file
    by_the_sweep = "tide_cache/sweep/worker.py: importlib.import_module() of a computed name"  # its own command line's
    aside = "tide_cache/aside.py: import pickle"  # what two of its own processes tell each other, over a pipe of theirs
    assert found == [by_name, aside, f"{RUNNER}: exec()", f"{RUNNER}: compile()", by_the_sweep]


def test_the_runner_of_generated_programs_is_only_started_by_the_sandbox():
    name = Path(RUNNER).stem
    assert [path.name for path in FILES if name in path.read_text()] == ["sandbox.py"]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "import shelve as s",
        "eval(text)",
        "exec(text)",
        "compile(text, 'a', 'exec')",
        "__import__(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "np.load(path)",
        "import numpy as n\nn.load(path, allow_pickle=True)",
        "reader(path, allow_pickle=flag)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "yaml.load(text)",
        "from yaml import unsafe_load\nyaml.unsafe_load(text)",
        "class A:\n    def __reduce__(self): pass",
        "f.__globals__['x']",
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_the_walk_finds_each_of_them(code):
    assert list(findings(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "load_file(path)",
        "json.load(file)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
        "subprocess.run([path])",
        "re.compile(text)",
        "model.eval()",
        "importlib.import_module('tokenkit.align')",
    ],
)
def test_the_walk_lets_harmless_code_pass(code):
    assert list(findings(ast.parse(code))) == []
