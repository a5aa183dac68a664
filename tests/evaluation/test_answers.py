"""Answers as text: equal to sampling tokens, cut at stop strings wherever tokens end, told only when settled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.errors import RunFileError
from tide_cache.evaluation import generate, generate_text
from tide_cache.evaluation.answers import cut, settled
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message

CONVERSATIONS = [[Message("user", "copy: abc")], [Message("user", "add: 2 and 3")]]
OPTIONS = {"block_size": 4, "max_new_tokens": 16, "steps_per_block": 2}


@pytest.fixture
def tokenizer(vocabularies):
    return TextTokenizer.load(str(vocabularies.first))


@pytest.fixture
def model(make_backbone, tokenizer):
    return make_backbone(seed=10, vocab=tokenizer.vocab_size, limit=96)


def test_conversations_are_answered_in_text(model, tokenizer):
    specials = set(tokenizer.is_special_V.nonzero()[0].tolist())
    want = [
        generate(
            model,
            [tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True).text).ids_L.tolist()],
            mask_id=tokenizer.mask_id,
            pad_id=tokenizer.pad_id,
            stop_ids=specials,
            **OPTIONS,
        )[0]
        for messages in CONVERSATIONS
    ]
    answers = generate_text(model, tokenizer, CONVERSATIONS, **OPTIONS)
    assert answers == [tokenizer.decode(ids) for ids in want]
    assert any(answers)


def test_an_answer_ends_before_the_first_stop_string(model, tokenizer):
    free = generate_text(model, tokenizer, CONVERSATIONS, **OPTIONS)
    stops = [max(free, key=len)[place : place + 3] for place in (5, 2)]
    blocks = []
    got = generate_text(
        model, tokenizer, CONVERSATIONS, stop_strings=stops, on_block=lambda *told: blocks.append(told), **OPTIONS
    )
    assert got == [cut(text, stops) for text in free] != free
    unstopped = []
    generate_text(model, tokenizer, CONVERSATIONS, on_block=lambda *told: unstopped.append(told), **OPTIONS)
    assert len(blocks) < len(unstopped), "no block is sampled after a stop string"


def test_an_empty_stop_string_is_refused(model, tokenizer):
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(RunFileError, match="found an empty text, which is everywhere"):
        generate_text(model, tokenizer, CONVERSATIONS, stop_strings=["a", ""], **OPTIONS)


@pytest.mark.parametrize("stops", [(), ("ope!",), (" t x", "heS?")])
def test_what_was_told_stays(model, tokenizer, stops):
    told = {0: [""], 1: [""]}
    answers = generate_text(
        model, tokenizer, CONVERSATIONS, stop_strings=stops, on_text=lambda i, text: told[i].append(text), **OPTIONS
    )
    for index, answer in enumerate(answers):
        assert len(told[index]) > 2
        for earlier, later in zip(told[index], [*told[index][1:], answer], strict=True):
            assert later.startswith(earlier)


@given(text=st.text("abc", max_size=12), end=st.text("abc", max_size=6), stops=st.lists(st.text("abc", min_size=1)))
def test_settled_text_is_a_beginning_of_every_continuation(text, end, stops):
    if cut(text, stops) == text:
        assert cut(text + end, stops).startswith(settled(text, stops))


def test_the_earliest_stop_string_counts_and_half_a_character_waits():
    assert cut("one two three", ["three", "wo", "x"]) == "one t"
    assert settled("caf\ufffd", ()) == "caf"
    assert settled("done. Quest", ["Question", "ty"]) == "done. "
