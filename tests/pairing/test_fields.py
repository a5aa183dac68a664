"""Reasoning, calls of tools, and answers that are only shown: what of a conversation is learnt."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tide_cache.corpus.shapes import conversation_of
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.pairing.checking import LengthLimit, remarks_of
from tide_cache.records import ChatRow, SampleId

THINK = """{%- set last = namespace(user=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if tools -%}<tools>{{ tools | tojson }}</tools>{%- endif -%}
{%- for m in messages -%}
{%- set body = m.content -%}{%- set why = m.reasoning_content or '' -%}
{%- if m.role == 'assistant' and '</think>' in body -%}
{%- set why = body.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set body = body.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' and loop.index0 > last.user -%}{{- '<think>\n' + why + '\n</think>\n\n' -}}{%- endif -%}
{{- body -}}
{%- for c in m.tool_calls or [] -%}{{- '\n<call>' + (c.function | tojson) + '</call>' -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' -}}{%- endif -%}"""
INSTEAD = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.tool_calls -%}{{- (m.tool_calls[0].function | tojson) -}}{%- else -%}{{- m.content -}}{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = '{"arguments": {"city": "Oslo"}, "name": "weather"}'
ASK = {"role": "user", "content": "Weather?"}
TOLD = [{"role": "tool", "name": "weather", "content": "rain"}, {"role": "assistant", "content": "It rains."}]


@pytest.fixture(scope="module")
def tokenizers(make_tokenizer) -> dict[str, TextTokenizer]:
    plain = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    return {
        name: TextTokenizer.load(str(make_tokenizer(name, template=template)), add_mask_token=True)
        for name, template in (("think", THINK), ("instead", INSTEAD), ("plain", plain))
    }


def learnt(tokenizer: TextTokenizer, value: dict[str, Any]) -> list[str]:
    """Texts of the runs of supervised tokens."""
    conversation = conversation_of(value, {})
    row = ChatRow(SampleId("x"), conversation.messages, "x.jsonl:1", conversation.tools)
    (pair,) = encode_student([row], tokenizer, max_length=999, block_size=1, fill_last_block=False).pairs
    runs = itertools.groupby(range(len(pair.student_ids_L)), key=lambda at: bool(pair.is_supervised_L[at]))
    return [tokenizer.decode(pair.student_ids_L[list(run)]) for is_supervised, run in runs if is_supervised]


def dropped(tokenizer: TextTokenizer, *values: dict[str, Any]) -> Any:
    rows = [
        ChatRow(SampleId(str(k)), conversation_of(value, {}).messages, f"x.jsonl:{k + 1}")
        for k, value in enumerate(values)
    ]
    return encode_student(rows, tokenizer, max_length=999, block_size=1, fill_last_block=False)


@pytest.mark.parametrize(
    "content", ["<think>\nSo.\n</think>\n\n42", "<think>So.</think>42", "  <think>So.</think> 42 "]
)
def test_reasoning_in_the_last_answer_is_learnt_with_it(tokenizers, content):
    row = {"messages": [{"role": "user", "content": "42?"}, {"role": "assistant", "content": content}]}
    assert "".join(learnt(tokenizers["think"], row)[0].split()) == "<think>So.</think>42<|im_end|>"


def test_reasoning_of_its_own_field_is_the_same_sample(tokenizers):
    inline = {"messages": [ASK, {"role": "assistant", "content": "<think>\nSo.\n</think>\n\n42"}]}
    apart = {"messages": [ASK, {"role": "assistant", "content": "42", "reasoning_content": "So."}]}
    assert learnt(tokenizers["think"], inline) == learnt(tokenizers["think"], apart)


def test_reasoning_that_the_template_does_not_write_is_said(tokenizers):
    apart = {"messages": [ASK, {"role": "assistant", "content": "42", "reasoning_content": "So."}]}
    assert learnt(tokenizers["plain"], apart) == ["42<|im_end|>\n"]
    remarks = remarks_of(dropped(tokenizers["plain"], apart), [LengthLimit("--max-length", 999)])
    assert any(remark.startswith("reasoning_content of 1 rows is not written") for remark in remarks)


def test_a_row_whose_earlier_reasoning_is_stripped_is_left_out_alone(tokenizers):
    answer = {"role": "assistant", "content": "<think>\nSo.\n</think>\n\n7"}
    stripped = {"messages": [ASK, answer, ASK, {"role": "assistant", "content": "9"}]}
    result = dropped(tokenizers["think"], stripped, {"messages": [ASK, {"role": "assistant", "content": "hi"}]})
    assert (len(result.pairs), result.report.dropped) == (
        1,
        {"the chat template strips the reasoning of an earlier turn": 1},
    )
    assert not result.faults, "the template is right to do so: the row is not bad"


@pytest.mark.parametrize("content", ["", None, "I look."])
@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_calls_of_tools_are_learnt(tokenizers, content, arguments):
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    row = {"messages": [ASK, {"role": "assistant", "content": content, "tool_calls": [call]}, *TOLD]}
    first, last = learnt(tokenizers["think"], row)
    assert first.strip() == f"{content or ''}\n<call>{CALLED}</call><|im_end|>".strip()
    assert last == "It rains.<|im_end|>\n"


def test_calls_that_stand_in_place_of_the_content(tokenizers):
    row = {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, *TOLD]}
    assert learnt(tokenizers["instead"], row) == [f"{CALLED}<|im_end|>", "It rains.<|im_end|>\n"]


@pytest.mark.parametrize("content", ["", None, "I look."])
def test_calls_that_the_template_does_not_write_make_a_bad_row(tokenizers, content):
    result = dropped(
        tokenizers["plain"], {"messages": [ASK, {"role": "assistant", "content": content, "tool_calls": [CALL]}]}
    )
    assert "does not write the tool_calls of message 1" in result.faults[0]


def test_functions_that_may_be_called_are_shown(tokenizers):
    tool = {"type": "function", "function": {"name": "weather"}}
    shown = conversation_of({"messages": [ASK, *TOLD[1:]], "tools": [tool]}, {})
    row = ChatRow(SampleId("x"), shown.messages, "x:1", shown.tools)
    for name, is_written in (("think", True), ("plain", False)):
        result = encode_student([row], tokenizers[name], max_length=999, block_size=1, fill_last_block=False)
        assert ("<tools>" in tokenizers[name].decode(result.pairs[0].student_ids_L)) is is_written
        assert result.lengths.unwritten == ({} if is_written else {"tools": 1})


def test_an_answer_of_weight_0_is_shown_and_not_learnt(tokenizers):
    messages = [
        ASK,
        {"role": "assistant", "content": "sun", "weight": 0},
        ASK,
        {"role": "assistant", "content": "rain"},
    ]
    assert learnt(tokenizers["plain"], {"messages": messages}) == ["rain<|im_end|>\n"]


def test_a_template_may_fail_in_any_way(make_tokenizer):
    template = "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}"
    broken = TextTokenizer.load(str(make_tokenizer("broken", template=template)), add_mask_token=True)
    result = dropped(broken, {"messages": [ASK, *TOLD[1:]]})
    assert result.report.dropped == {"the chat template fails on it": 1}


def test_a_template_must_be_chosen(shared: Path):
    with pytest.raises(
        Exception, match=r"several chat templates \(tool_use, rag\), and none of them is called default"
    ):
        TextTokenizer.load(str(shared / "cases" / "templates-without-default"))


def test_much_cutting_is_warned_of_with_the_length_that_holds_most(small, make_row):
    rows = [make_row("a " * k, "b c d e f") for k in range(1, 21)]
    paired = encode_student(rows, small, max_length=24, block_size=1, fill_last_block=False)
    remarks = remarks_of(paired, [LengthLimit("--max-length", 24)])
    assert f"{paired.report.truncated} of {paired.report.samples} samples cut at max_length" in remarks
    lengths = sorted(k for k, count in paired.lengths.student.items() for _ in range(count))
    assert remarks[-1].startswith("warning: ")
    assert f"--max-length = {lengths[18]} would hold 95%" in remarks[-1]
    roomy = encode_student(rows, small, max_length=lengths[18], block_size=1, fill_last_block=False)
    assert roomy.report.truncated == 1
    assert not any("warning" in remark for remark in remarks_of(roomy, [LengthLimit("--max-length", lengths[18])]))
