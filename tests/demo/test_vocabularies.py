import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tide_cache.demo.tasks import Task, make_tasks
from tide_cache.demo.vocabularies import MASK_TOKEN, Vocabularies, train_vocabularies

MAX_LENGTH = 64


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    return train_vocabularies(tmp_path_factory.mktemp("vocabularies") / "new", seed=0)


@pytest.fixture(scope="module")
def tokenizers(vocabularies: Vocabularies) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(vocabularies.first), AutoTokenizer.from_pretrained(vocabularies.second)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return make_tasks(2000, seed=5)


def as_chat(task: Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": task.question}, {"role": "assistant", "content": task.answer}]


def chat_ids(tokenizer: Any, task: Task) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(as_chat(task), tokenize=True, return_dict=False)
    return ids


def token_ends(tokenizer: Any, text: str) -> Any:
    """Byte offsets at which tokens end: a byte-level token's text has one character per byte."""
    return np.cumsum([len(token) for token in tokenizer.tokenize(text)])


def test_a_seed_determines_every_byte(vocabularies: Vocabularies, tmp_path: Path) -> None:
    again = train_vocabularies(tmp_path / "again", seed=0)
    other = train_vocabularies(tmp_path / "other", seed=1)
    for name in ("first", "second"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (getattr(again, name) / file).read_bytes() == (getattr(vocabularies, name) / file).read_bytes()
        path = "tokenizer.json"
        assert (getattr(other, name) / path).read_bytes() != (getattr(vocabularies, name) / path).read_bytes()


def test_training_again_into_the_same_folder_gives_the_same_files(vocabularies: Vocabularies) -> None:
    before = {path: path.read_bytes() for path in vocabularies.first.parent.rglob("*.json")}
    assert train_vocabularies(vocabularies.first.parent, seed=0) == vocabularies
    assert {path: path.read_bytes() for path in vocabularies.first.parent.rglob("*.json")} == before
    assert len(before) == 4


def test_they_load_without_a_warning(vocabularies: Vocabularies, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    for folder in (vocabularies.first, vocabularies.second):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer("add: 1 and 2")
        assert tokenizer.mask_token == MASK_TOKEN
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_sizes_and_special_tokens(tokenizers: tuple[Any, Any], vocabularies: Vocabularies) -> None:
    assert [len(tokenizer) for tokenizer in tokenizers] == [384, 512]
    for tokenizer in tokenizers:
        special = [tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert len(set(special)) == 3
        assert min(special) >= len(tokenizer) - 5
        assert tokenizer.get_added_vocab().keys() >= {MASK_TOKEN, tokenizer.eos_token, tokenizer.pad_token}
    config = json.loads((vocabularies.first / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_both_begin_with_the_256_bytes_in_one_order(tokenizers: tuple[Any, Any]) -> None:
    first, second = (tokenizer.convert_ids_to_tokens(list(range(256))) for tokenizer in tokenizers)
    assert first == second
    assert all(len(token) == 1 for token in first)
    assert len(set(first)) == 256


def test_merges_overlap_but_neither_holds_the_other_and_ids_do_not_carry_over(tokenizers: tuple[Any, Any]) -> None:
    first, second = (
        {token: id_ for token, id_ in tokenizer.get_vocab().items() if token not in tokenizer.get_added_vocab()}
        for tokenizer in tokenizers
    )
    assert first.keys() - second.keys()
    assert second.keys() - first.keys()
    shared_merges = {token for token in first.keys() & second.keys() if len(token) > 1}
    assert len(shared_merges) > 50
    assert sum(first[token] != second[token] for token in shared_merges) > 0.8 * len(shared_merges)


@given(text=st.text(max_size=40))
def test_decode_inverts_encode_on_any_text(tokenizers: tuple[Any, Any], text: str) -> None:
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_inverts_encode_on_tasks(tokenizers: tuple[Any, Any], tasks: list[Task]) -> None:
    for tokenizer in tokenizers:
        for task in tasks:
            assert tokenizer.decode(tokenizer.encode(task.answer)) == task.answer


def test_templates_differ_and_keep_question_and_answer(tokenizers: tuple[Any, Any]) -> None:
    chat = as_chat(Task("add", "add: 1 and 2", "1 + 2 = 3"))
    first, second = (tokenizer.apply_chat_template(chat, tokenize=False) for tokenizer in tokenizers)
    assert first == "<|user|>add: 1 and 2<|im_end|>\n<|assistant|>1 + 2 = 3<|im_end|>\n"
    assert second == ("<role>HUMAN</role>add: 1 and 2<|endoftext|><role>ASSISTANT</role>1 + 2 = 3<|endoftext|>")


def test_the_generation_prompt_is_a_prefix_of_the_whole_chat(tokenizers: tuple[Any, Any], tasks: list[Task]) -> None:
    for tokenizer in tokenizers:
        for task in tasks[:100]:
            prompt = tokenizer.apply_chat_template(as_chat(task)[:1], add_generation_prompt=True, return_dict=False)
            whole = chat_ids(tokenizer, task)
            answer = whole[len(prompt) :]
            assert whole[: len(prompt)] == prompt
            assert tokenizer.decode(answer[: answer.index(tokenizer.eos_token_id)]) == task.answer


def test_whole_chats_stay_under_the_cap(tokenizers: tuple[Any, Any], tasks: list[Task]) -> None:
    for tokenizer in tokenizers:
        lengths = [len(chat_ids(tokenizer, task)) for task in tasks]
        assert max(lengths) <= MAX_LENGTH
        assert min(lengths) >= 14
        assert 20 <= np.median(lengths) <= 48


def test_no_task_holds_a_special_token(tokenizers: tuple[Any, Any], tasks: list[Task]) -> None:
    for tokenizer in tokenizers:
        special = set(tokenizer.get_added_vocab().values())
        assert not any(special & set(tokenizer.encode(task.question + task.answer)) for task in tasks)


def test_digits_are_split_by_one_and_kept_together_by_the_other(tokenizers: tuple[Any, Any]) -> None:
    first, second = tokenizers
    assert not any(re.search("[0-9]{2}", token) for token in first.get_vocab())
    assert [len(tokenizer.tokenize(" 10")) for tokenizer in (first, second)] == [2, 1]


def test_they_disagree_on_boundaries_but_share_most(tokenizers: tuple[Any, Any], tasks: list[Task]) -> None:
    """Chunks lie between shared boundaries: most are one token on each side, many are not."""
    shapes: Counter[tuple[int, int]] = Counter()
    for task in tasks:
        first, second = (token_ends(tokenizer, task.answer) for tokenizer in tokenizers)
        shared = np.intersect1d(first, second)
        assert shared[-1] == len(task.answer.encode())
        per_chunk = [np.diff(np.searchsorted(ends, shared, side="right"), prepend=0) for ends in (first, second)]
        shapes.update(zip(*(counts.tolist() for counts in per_chunk), strict=True))
    one_to_one = shapes[1, 1] / shapes.total()
    assert 0.6 <= one_to_one <= 0.85
