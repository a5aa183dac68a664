"""A run file is refused with all its faults at once; overrides win; paths are taken from where they were written."""

import pytest

from tide_cache.config.base import load_run_file, parse_assignments
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError

GOOD = """
[student]
model = "checkpoint"
[data]
cache = "cache"
[[objective]]
kind = "ce"
[[objective]]
kind = "kl"
temperature = 2.0
[train]
out = "out"
steps = 3
"""


@pytest.fixture
def write(tmp_path):
    def to(text, name="run.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return to


def refuse(path, overrides=None, model=TrainRun):
    with pytest.raises(RunFileError) as caught:
        load_run_file(model, path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_paths_are_taken_from_the_run_file_and_hub_names_left_alone(write, tmp_path):
    run = load_run_file(TrainRun, write(GOOD))
    assert run.train.out == tmp_path / "out"
    assert run.data.cache == tmp_path / "cache"
    assert run.student.model == "checkpoint"  # nothing lies there: a hub name
    (tmp_path / "checkpoint").mkdir()
    assert load_run_file(TrainRun, write(GOOD)).student.model == str(tmp_path / "checkpoint")


def test_the_corpus_folder_is_the_run_files_own(write, tmp_path):
    text = GOOD.replace('cache = "cache"', "").replace("[data]", '[data.corpus]\nspec = "a.jsonl"')
    run = load_run_file(TrainRun, write(text.split("[[objective]]")[0] + '[train]\nout = "o"\nsteps = 1\n'))
    assert run.data.corpus.folder == tmp_path


def test_paths_of_overrides_are_taken_from_the_working_folder(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_run_file(TrainRun, write(GOOD), {"train.out": "new"}).train.out == elsewhere / "new"


def test_overrides_reach_into_sections_and_lists_and_win(write):
    overrides = parse_assignments(["train.steps=9", "objective.1.weight=0.5", "optimizer.schedule=constant"])
    run = load_run_file(TrainRun, write(GOOD), overrides)
    assert (run.train.steps, run.objective[1].weight, run.objective[1].temperature) == (9, 0.5, 2.0)
    assert run.optimizer.schedule == "constant"


def test_every_fault_is_told_at_once_with_what_was_meant(write):
    text = GOOD.replace("steps = 3", "stepps = 3\nmicro_batch = 0").replace("temperature", "temprature")
    message = refuse(write(text))
    assert "train.stepps: unknown key; did you mean 'steps'?" in message
    assert "objective.1.kl.temprature: unknown key; did you mean 'temperature'?" in message
    assert "train.micro_batch: found 0; Input should be greater than or equal to 1" in message


def test_an_unknown_key_without_a_likeness_lists_what_is_known(write):
    message = refuse(write(GOOD.replace('cache = "cache"', 'cache = "cache"\nzzz = 1')))
    known = "cache, corpus, date, hot_cache, hot_cache_gib, lanes, mix, num_views, seed, signal_pass, views"
    assert f"data.zzz: unknown key; known here: {known}" in message


def test_a_refused_entry_of_a_list_is_told_once(write):
    message = refuse(write(GOOD.replace('kind = "ce"', 'kind = "cee"').replace('kind = "kl"', 'kind = "ce"')))
    assert "objective.0: found kind 'cee'; did you mean 'ce'?" in message
    assert "at least 1 item" not in message
    assert "objective: Tuple should have at least 1 item" in refuse(
        write("objective = []" + GOOD.split("[[objective]]")[0])
    )


def test_values_that_contradict_each_other(write):
    assert "give either steps or epochs" in refuse(write(GOOD + "epochs = 1\n"))
    assert "give either cache or corpus" in refuse(write(GOOD.replace('cache = "cache"', "")))
    assert "give either model (a checkpoint) or shape" in refuse(write(GOOD.replace('model = "checkpoint"', "")))
    assert "global_batch 64 is not a multiple of micro_batch 7" in refuse(write(GOOD + "micro_batch = 7\n"))
    corpus = GOOD.replace('cache = "cache"', 'corpus.spec = "a"\nviews = { num_views = 3, complementary = true }')
    assert "num_views 3: complementary views come in pairs; use an even number" in refuse(write(corpus))
    assert "student: missing; it has no default" in refuse(write("[train]\nout = 'o'\nsteps = 1\n"))


@pytest.mark.parametrize(
    ("signals", "part"),
    [
        ("temperatures = [2.0]", "temperatures must be distinct and include 1.0"),
        ("temperatures = [1.0, 1.0]", "temperatures must be distinct and include 1.0"),
        ('codec = "compact"\nlogprob_dtype = "float32"', "codec 'compact' stores float16 log-probs: set logprob_dtype"),
        ("temperatures = [1.0, -2.0]", "temperatures must be positive"),
        ("top_p = 1.5", "signals.top_p: found 1.5; Input should be less than or equal to 1"),
        ('kinds = ["topk"]', "kinds must include 'truth'"),
    ],
)
def test_signals_that_cannot_be(write, signals, part):
    text = f"""
    [corpus]
    spec = "a.jsonl"
    [teacher]
    model = "t"
    [student.tokenizer]
    path = "s"
    [signals]
    {signals}
    [build]
    out = "o"
    """
    assert part in refuse(write(text), model=BuildRun)


def test_files_that_cannot_be_read(write, tmp_path):
    assert "no such run file" in refuse(tmp_path / "missing.toml")
    assert "not valid TOML" in refuse(write("a = [1"))
    assert "cannot be read" in refuse(tmp_path)


@pytest.mark.parametrize(
    ("item", "part"),
    [
        ("train.steps", "found no '='"),
        ("objective.weight=1", "objective.0.weight=1.0"),
        ("objective.7.weight=1", "'7' is not an index of a list of 2 entries"),
        ("optimizer.0.lr=1", "found no list to take entry 0 of; write it in the run file"),
    ],
)
def test_assignments_that_lead_nowhere(write, item, part):
    with pytest.raises(RunFileError) as caught:
        load_run_file(TrainRun, write(GOOD), parse_assignments([item]))
    assert part in str(caught.value)
