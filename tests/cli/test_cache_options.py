"""`--cache` names one cache or several, and takes the place of whatever data the run file names."""

import pytest

from tide_cache.config.base import load_run_file
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError
from tide_cache_cli.options import caches


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], {}),
        (["a"], {"data.cache": "a"}),
        (["s3://bucket/a"], {"data.cache": "s3://bucket/a"}),
        (["runs/lr=3/a"], {"data.cache": "runs/lr=3/a"}),
        (["lr=3/"], {"data.cache": "lr=3/"}),
        (["a=2"], {"data.mix": [{"cache": "a", "weight": 2.0}]}),
        (["a", "lr=3/=.5"], {"data.mix": [{"cache": "a"}, {"cache": "lr=3/", "weight": 0.5}]}),
    ],
)
def test_folders_and_weights(items, expected):
    assert caches(items) == expected


@pytest.mark.parametrize("item", ["a=b", "a=", "a=-1", "a=nan"])
def test_a_weight_that_is_no_number_is_refused(item):
    with pytest.raises(RunFileError) as caught:
        caches(["b", item])
    assert f"--cache {item!r}: found weight {item[2:]!r}; expected FOLDER or FOLDER=WEIGHT" in str(caught.value)
    assert "a folder with '=' in its name ends in '/'" in str(caught.value)


@pytest.mark.parametrize(
    "data", ['cache = "earlier"', 'corpus = { spec = "a.jsonl" }', 'mix = [{ cache = "earlier" }]']
)
def test_options_take_the_place_of_the_run_files_data(call, workshop, tmp_path, data):
    """What is refused is the folder of the option, so nothing else was read."""
    path = tmp_path / "run.toml"
    path.write_text((workshop.root / "train.toml").read_text().replace('"vocab', f'"{workshop.root}/vocab'))
    path.write_text(f"{path.read_text()}\n[data]\n{data}\n")
    for options in (["--cache", "missing"], ["--cache", "missing", "--cache", "cache=2"]):
        result = call("train", path, *options, "--out", tmp_path / "out")
        assert result.exit_code == 3, result.stderr
        assert f"{workshop.root / 'missing'}: no cache here" in result.stderr
        assert "earlier" not in result.stderr
    result = call("train", path, "--dataset", "tasks.jsonl", "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.stderr


def test_a_dry_run_prints_a_mix_that_reads_back_as_the_same_run(call, workshop, tmp_path):
    options = ["--set", "student.tokenizer.path=vocab/first", "--set", "data.mix.0.num_views=1"]
    result = call("train", "train.toml", "--cache", "cache=0.25", *options, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.stderr
    (tmp_path / "resolved.toml").write_text(result.stdout)
    (entry,) = load_run_file(TrainRun, tmp_path / "resolved.toml").data.mix
    assert (entry.cache, entry.weight, entry.num_views) == (workshop.cache, 0.25, 1)
