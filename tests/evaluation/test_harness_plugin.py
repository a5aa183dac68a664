"""Our models under lm-eval's own command, found by the entry points that this distribution declares."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from helpers.fresh import IS_FULL
from helpers.task_examples import write_tasks
from tide_cache import lm_eval_hook
from tide_cache.errors import RunFileError
from tide_cache.evaluation.harness.plugin import TideCacheLM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def student(tiny_teacher, tmp_path_factory):
    folder = shutil.copytree(tiny_teacher, tmp_path_factory.mktemp("plugin") / "student")
    (folder / "tide_cache.json").write_text(json.dumps({"block_size": 8, "run": {}}))
    return folder


@pytest.fixture
def tasks(tmp_path):
    """A task of likelihoods and one of answers, over five questions on this disk."""
    data = tmp_path / "questions.jsonl"
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}"
    return ",".join(map(str, write_tasks(tmp_path, source, data)))


@pytest.fixture
def installed(tmp_path):
    """A folder for PYTHONPATH that says what pyproject.toml says, whenever this environment was installed."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "site" / "entry_points_of_this_tree-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-points-of-this-tree\nVersion: 0\n")
    sections = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()) for group, found in groups.items())
    (info / "entry_points.txt").write_text("\n".join(sections))
    return info.parent


def test_the_entry_points_that_are_declared_lead_here():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    found = {
        name: EntryPoint(name, value, group).load()
        for group, values in groups.items()
        for name, value in values.items()
    }
    assert found == {"tide_cache": TideCacheLM, "tide_cache_lm_eval": lm_eval_hook.register}


@pytest.mark.skipif(not IS_FULL, reason="takes seconds to import what others share: TIDE_CACHE_TESTS=full")
def test_the_harness_s_own_command(student, tasks, installed, tmp_path):
    command = [
        Path(sys.executable).parent / "lm_eval", "--model", "tide_cache", "--tasks", tasks, "--batch_size", 3,
        "--model_args", f"pretrained={student},block_size=8,threshold=0.9,num_samples=2", "--device", "cpu",
        "--output_path", tmp_path / "out", "--log_samples",
    ]  # fmt: skip
    away = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, "PYTHONPATH": str(installed), **away}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["results"]["choices"].keys() >= {"acc,none"}
    assert found["results"]["answers"].keys() >= {"exact_match,none"}
    assert found["config"]["tide_cache_options"]["threshold"] == 0.9
    assert found["config"]["tide_cache_decoding"]["sequences"] == 5
    assert found["config"]["tide_cache_decoding"]["tokens_per_forward"] > 0

    (log,) = (tmp_path / "out").rglob("samples_answers_*.jsonl")
    written = [json.loads(line) for line in log.read_text().splitlines()]
    lm = model_of(student, "1", threshold=0.9)
    for entry in written:
        prompt = entry["arguments"]["gen_args_0"]["arg_0"]
        (alone,) = lm._generate([lm.tok_encode(prompt)], 12, 0.0, None)
        assert entry["resps"] == [[lm.tokenizer.decode(alone)]], "whatever the batch size"


def model_of(student, batch_size, **options):
    """A model as lm-eval makes it, from a string and what its command adds."""
    text = ",".join(f"{name}={value}" for name, value in {"pretrained": student, **options}.items())
    return TideCacheLM.create_from_arg_string(text, {"batch_size": batch_size, "device": None, "max_batch_size": None})


@pytest.mark.parametrize(
    ("batch_size", "options", "reason"),
    [
        ("1", {"threshold": 1.5}, "threshold is 1.5; expected a probability"),
        ("1", {"steps_per_block": 9}, "steps_per_block is 9; expected 1 to block_size"),
        ("1", {"block_size": 4}, "was trained with blocks of 8, and with another size it meets masks"),
        ("none", {}, "batch_size is 'none'; expected a whole number from 1, or auto"),
        ("auto", {"dtype": "float8"}, "dtype is 'float8'; expected one of float32, bfloat16"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(student, monkeypatch, batch_size, options, reason):
    monkeypatch.setattr("tide_cache.evaluation.harness.plugin.load_backbone", None)
    with pytest.raises(RunFileError, match=reason):
        model_of(student, batch_size, **options)


def test_the_hook_does_nothing_where_lm_eval_is_not_imported():
    code = "import sys, tide_cache.lm_eval_hook as hook; hook.register()\n"
    code += "print([name for name in sys.modules if 'lm_eval' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "['tide_cache.lm_eval_hook']"
