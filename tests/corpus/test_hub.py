"""Hub names, offline: from the local hub cache, and with a clear way out where it lacks them."""

import json
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pytest

from tide_cache.corpus import open_corpus
from tide_cache.errors import CorpusError


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """An empty hub cache and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def put(cache: Path, owner: str, name: str, config: str, splits: dict[str, list[str]]) -> None:
    """Lay a dataset into the cache as a download leaves it."""
    folder = cache / f"{owner}___{name}" / config / "0.0.0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    infos = {}
    for split, texts in splits.items():
        table = pa.table({"text": texts})
        with pa.ipc.new_stream(str(folder / f"{name}-{split}.arrow"), table.schema) as writer:
            writer.write_table(table)
        infos[split] = {"name": split, "num_bytes": 1, "num_examples": len(texts), "dataset_name": name}
    info = {"features": {"text": {"dtype": "string", "_type": "Value"}}, "builder_name": "json", "dataset_name": name}
    version = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
    info |= {"config_name": config, "version": version, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def texts(spec: str, folder: Path) -> list[str]:
    return [row.messages[0].content for row in open_corpus(spec, folder=folder)]


def test_split_configuration_and_count_are_selected(tmp_path: Path, hub_cache: Path) -> None:
    put(hub_cache, "org", "tales", "short", {"train": ["a", "b", "c"], "test": ["d"]})
    put(hub_cache, "org", "tales", "long", {"train": ["aa", "bb"]})
    assert texts("org/tales[name:short]", tmp_path) == ["a", "b", "c"]
    assert texts("org/tales[name:short,train:2]", tmp_path) == ["a", "b"]
    assert texts("org/tales[test:,name:short]", tmp_path) == ["d"]
    assert texts("org/tales[name:long]+org/tales[name:short,test:9]", tmp_path) == ["aa", "bb", "d"]
    row = open_corpus("org/tales[name:long]", folder=tmp_path)[1]
    assert (row.sample_id, row.origin) == ("0/org/tales#1", "org/tales row 1")


def test_an_unknown_split_names_those_there_are(tmp_path: Path, hub_cache: Path) -> None:
    put(hub_cache, "org", "tales", "default", {"train": ["a"], "test": ["d"]})
    with pytest.raises(CorpusError, match=r"\(configuration default, split dev\): .*train.*test"):
        open_corpus("org/tales[dev:3]", folder=tmp_path)


def test_a_dataset_that_is_not_there_offline_says_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as caught:
        open_corpus("org/nothing", folder=tmp_path)
    message = str(caught.value)
    assert message.startswith("org/nothing: no such folder, and the hub is not asked, since HF_HUB_OFFLINE is set; ")
    assert "Fetch it on a machine with a network" in message


def test_a_folder_of_the_working_directory_is_not_taken_for_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "org" / "tales").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CorpusError, match=r"org/tales: is a folder of the working directory .* ./org/tales from"):
        open_corpus("org/tales", folder=tmp_path)
