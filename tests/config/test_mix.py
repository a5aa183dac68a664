"""A mix of caches in a run file: one kind of data at a time, and settings of a cache are in its entry."""

import pytest

from tide_cache.config.base import load_run_file
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError

VALUES = {"student.model": "m", "train.out": "o", "train.steps": 1}


def load(**data):
    preset = {"preset": data.pop("preset")} if "preset" in data else {}
    return load_run_file(TrainRun, None, {**VALUES, **preset, **{f"data.{key}": value for key, value in data.items()}})


def refuse(**data):
    with pytest.raises(RunFileError) as caught:
        load(**data)
    return str(caught.value)


def test_entries_have_a_weight_a_pass_and_locations_of_their_own(tmp_path):
    (tmp_path / "run.toml").write_text(
        '[student]\nmodel = "m"\n[train]\nout = "o"\nsteps = 1\n[[data.mix]]\ncache = "a"\nweight = 2\n'
        '[[data.mix]]\ncache = "s3://bucket/b"\nsignal_pass = "compdemo"\nnum_views = 3\n'
    )
    data = load_run_file(TrainRun, tmp_path / "run.toml").data
    assert [(str(e.cache), e.weight, e.signal_pass, e.num_views) for e in data.caches] == [
        (str(tmp_path / "a"), 2.0, "plain", None),
        ("s3://bucket/b", 1.0, "compdemo", 3),
    ]


def test_one_cache_is_read_as_it_is_said_and_a_corpus_has_none():
    (entry,) = load(cache="a", signal_pass="compdemo", num_views=2).data.caches
    assert (entry.cache.name, entry.weight, entry.signal_pass, entry.num_views) == ("a", 1.0, "compdemo", 2)
    assert load(**{"corpus.spec": "a.jsonl"}).data.caches == ()


@pytest.mark.parametrize("other", [{"cache": "c"}, {"corpus.spec": "a.jsonl"}])
def test_cache_mix_and_corpus_exclude_each_other(other):
    assert "give either cache or corpus, or mix for several caches" in refuse(mix=[{"cache": "a"}], **other)


@pytest.mark.parametrize("own", [{"signal_pass": "compdemo"}, {"num_views": 2}])
def test_what_belongs_to_a_cache_stands_beside_it(own):
    message = refuse(mix=[{"cache": "a"}], **own)
    assert "signal_pass and num_views: with mix each entry has its own; put them there" in message


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "much"])
def test_a_weight_is_a_positive_number(weight):
    assert f"data.mix.1.weight: found {weight!r}; Input should be" in refuse(
        mix=[{"cache": "a"}, {"cache": "b", "weight": weight}]
    )


def test_no_cache_and_an_unknown_key_are_refused():
    assert "data.mix" in refuse(mix=[])
    assert "data.mix.0.wieght: unknown key; did you mean 'weight'?" in refuse(mix=[{"cache": "a", "wieght": 2}])
    assert "data.mix.0.cache: missing" in refuse(mix=[{"weight": 2}])


def test_a_preset_gives_its_pass_to_every_cache_that_names_none():
    mix = [{"cache": "a"}, {"cache": "b", "signal_pass": "plain"}]
    assert [e.signal_pass for e in load(preset="shared/tide-shared", mix=mix).data.mix] == ["compdemo", "plain"]
