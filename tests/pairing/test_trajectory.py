"""Steps of a decoding, given for an answer, at the teacher's tokens."""

import json

from tide_cache.pairing import TextTokenizer
from tide_cache.pairing.trajectory import token_steps
from tide_cache.records import ChatRow, Message, SampleId

BARE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_an_answer_at_the_very_start_of_a_text_keeps_its_first_token(make_tokenizer):
    """In whatever place of the batch the text is."""
    teacher = TextTokenizer.load(str(make_tokenizer("bare", template=BARE)), add_mask_token=True)
    rows, expected = [], []
    for number, text in enumerate(("the cat sat", "on the mat", "the log")):
        steps = list(range(5, 5 + len(teacher.encode(text).ids_L)))
        said = (Message("assistant", text),)
        rows.append(ChatRow(SampleId(str(number)), said, f"row {number}", trajectory=json.dumps(steps)))
        expected.append(steps)
    assert [found if isinstance(found, str) else found.tolist() for found in token_steps(rows, teacher)] == expected
