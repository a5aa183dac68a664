"""A misspelt folder is refused at once; only owner/name is looked for on a hub."""

import pytest

from tide_cache.errors import ModelError, PairingError
from tide_cache.locations import nowhere
from tide_cache.modeling.backbone import read_checkpoint
from tide_cache.modeling.fingerprint import local_folder
from tide_cache.pairing import TextTokenizer


@pytest.mark.parametrize("location", ["nope", "./nope", "../nope", "/no/such", "a/b/c", "~/x", "/nope", "owner/"])
def test_what_can_be_neither_is_said_to_be_nowhere(location):
    assert "found no such folder; expected one, or a hub name of the form owner/name" in (nowhere(location) or "")


def test_folders_and_hub_names_are_somewhere(tmp_path):
    assert nowhere(str(tmp_path)) is None
    assert nowhere("Qwen/Qwen3-0.6B") is None


def test_nothing_is_asked_of_a_hub_for_a_misspelt_folder():
    for load, error in ((read_checkpoint, ModelError), (local_folder, ModelError), (TextTokenizer.load, PairingError)):
        with pytest.raises(error, match="nope: found no such folder"):
            load("nope")
