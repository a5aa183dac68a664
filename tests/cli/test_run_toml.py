"""What --dry-run prints can be saved and run again."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache_cli.run_toml import run_toml

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SMALL = st.floats(1e-12, 1e12)


def reread(run):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.toml")
        path.write_text(run_toml(run), encoding="utf-8")
        return load_run_file(type(run), path)


@given(spec=TEXTS, columns=st.dictionaries(TEXTS, TEXTS, max_size=3), temperatures=st.sets(SMALL, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_build_run_survives_writing_and_reading(spec, columns, temperatures):
    run = BuildRun.model_validate(
        {
            "corpus": {"spec": spec, "columns": columns, "folder": "/data"},
            "teacher": {"model": "/models/teacher"},
            "student": {"tokenizer": {"path": "/tokenizers/student", "add_mask_token": True}},
            "signals": {"temperatures": [1.0, *sorted(temperatures - {1.0})]},
            "build": {"out": "/caches/new"},
        }
    )
    assert reread(run) == run


@given(weight=SMALL, eps=SMALL, kinds=st.lists(st.sampled_from(["ce", "kl", "calm"]), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_training_run_survives_writing_and_reading(weight, eps, kinds):
    run = TrainRun.model_validate(
        {
            "student": {
                "shape": dict.fromkeys(("hidden_size", "intermediate_size"), 8)
                | dict.fromkeys(("num_layers", "num_heads", "num_kv_heads"), 1),
                "tokenizer": {"path": "/tokenizers/student"},
            },
            "data": {"cache": "/caches/one"},
            "objective": [{"kind": kind, "weight": weight} for kind in kinds],
            "optimizer": {"eps": eps, "betas": [0.5, 0.25]},
            "train": {"out": "/runs/one", "epochs": 1.5},
        }
    )
    assert reread(run) == run


def test_paths_become_absolute_so_that_the_file_can_be_saved_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = {
        "corpus.spec": "a.jsonl",
        "teacher.model": "./teacher",
        "student.tokenizer.path": "./t",
        "build.out": "c",
    }
    run = load_run_file(BuildRun, None, overrides)
    assert reread(run).corpus.folder == tmp_path
    assert reread(run).build.out == tmp_path / "c"
