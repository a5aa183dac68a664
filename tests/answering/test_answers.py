"""Answers by a teacher: the same file however the work is cut or stopped, and nothing lost of the rows."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from answering.conftest import ROWS
from transformers import AutoModelForCausalLM

from tide_cache.answering.prepare import prepare_answers
from tide_cache.answering.record import begin, part_path, parts_folder, record_path
from tide_cache.answering.run import write_answers
from tide_cache.answering.shard import PartCounts
from tide_cache.corpus import open_corpus
from tide_cache.errors import CorpusError, Interrupted, PairingError, RunFileError, TideCacheError
from tide_cache.pairing import TextTokenizer


def written(run, **how):
    return write_answers(prepare_answers(run).with_weights(), **how)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_run):
    """The file of an undisturbed run."""
    run = make_run(tmp_path_factory.mktemp("whole") / "whole.jsonl")
    assert written(run).result.answers == len(ROWS)
    return run.answers.out


@pytest.fixture
def copy_of(whole, run_of):
    """A run whose file and record are those of the undisturbed one."""
    run = run_of()
    shutil.copyfile(whole, run.answers.out)
    shutil.copyfile(record_path(whole), record_path(run.answers.out))
    return run


def test_the_file_does_not_depend_on_batches(run_of, whole):
    run = run_of(answers={"batch_size": 1})
    written(run)
    assert run.answers.out.read_bytes() == whole.read_bytes()
    assert not parts_folder(run.answers.out).exists()


def test_a_stopped_run_goes_on_where_it_was(run_of, whole):
    def stop(done, total):
        if done >= 4:
            raise Interrupted("stopped")

    run = run_of()
    with pytest.raises(Interrupted):
        written(run, on_progress=stop)
    assert part_path(run.answers.out, 0).exists()
    assert not run.answers.out.exists()
    summary = written(run)
    assert 1 <= summary.shards_reused < summary.num_shards
    assert run.answers.out.read_bytes() == whole.read_bytes()
    again = written(run)
    assert again.shards_reused == again.num_shards
    assert again.result == summary.result


def test_a_run_that_died_before_it_recorded_the_file_ends_alike(run_of, whole):
    run = run_of()
    prepared = prepare_answers(run).with_weights()
    begin(run.answers.out, prepared.identity, {})
    lines = whole.read_bytes().splitlines(keepends=True)
    for shard in range(prepared.num_shards):
        rows = prepared.rows_of(shard)
        head = json.dumps(asdict(PartCounts(answers=len(rows)))).encode() + b"\n"
        part_path(run.answers.out, shard).write_bytes(head + b"".join(lines[rows.start : rows.stop]))
    run.answers.out.write_bytes(whole.read_bytes())
    summary = write_answers(prepared)
    assert summary.result.answers == len(ROWS)
    assert summary.shards_reused == summary.num_shards
    assert run.answers.out.read_bytes() == whole.read_bytes()
    assert not parts_folder(run.answers.out).exists()


def test_rows_keep_their_fields_and_become_a_corpus(whole):
    rows = {row["messages"][-2]["content"]: row for row in rows_of(whole)}
    first = rows["copy: axe"]
    assert (first["difficulty"], first["tags"], first["reference_answer"]) == (3, ["a", {"b": None}], "axe")
    assert first.keys() == {"messages", "difficulty", "tags", "reference_answer"}
    assert rows["add: 1 2"]["id"] == "x-1"
    assert "reference_answer" not in rows["reverse: one two three"]
    assert rows["copy this:\n\nbee"]["reference_answer"] == "bee"
    talk = rows["copy: cow"]["messages"]
    assert [turn["role"] for turn in talk] == ["system", "user", "assistant", "user", "assistant"]
    assert (talk[2]["content"], talk[2]["weight"], "weight" in talk[4]) == ("ox", 0, False)
    corpus = open_corpus(str(whole), folder=whole.parent)
    assert [row.messages[-1].content for row in corpus] == [row["messages"][-1]["content"] for row in rows.values()]
    assert not any(message.is_learnt for row in corpus for message in row.messages[:-1] if message.role == "assistant")


def test_a_causal_teacher_writes_what_its_own_code_generates(run_of, causal_teacher):
    run = run_of(teacher=causal_teacher, decoding={"temperature": 0.0})
    prepared = prepare_answers(run)
    assert prepared.run.teacher.context == "causal"
    summary = write_answers(prepared.with_weights())
    model = AutoModelForCausalLM.from_pretrained(causal_teacher, dtype=torch.float32).eval()
    tokenizer = TextTokenizer.load(str(causal_teacher), add_mask_token=True)
    stops = tokenizer.is_special_V.nonzero()[0].tolist()
    texts = []
    for prompt in prepared.prompts(range(len(ROWS))):
        ids = torch.tensor([prompt.ids])
        made = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=stops, pad_token_id=0)[0]
        new = made[ids.shape[1] :].tolist()
        texts.append(tokenizer.decode(new[:-1] if new[-1] in stops else new))
    assert summary.result.answers == sum(bool(text.strip()) for text in texts)
    assert [row["messages"][-1]["content"] for row in rows_of(run.answers.out)] == [t for t in texts if t.strip()]


@pytest.mark.parametrize("kind", ["diffusion", "causal"])
def test_the_trajectory_covers_the_text(run_of, causal_teacher, tiny_teacher, kind):
    teacher = causal_teacher if kind == "causal" else tiny_teacher
    run = run_of(teacher=teacher, answers={"trajectory": True})
    written(run)
    for row in rows_of(run.answers.out):
        sizes, steps = zip(*row["trajectory"], strict=True)
        assert sum(sizes) == len(row["messages"][-1]["content"].encode())
        assert all(size > 0 for size in sizes[:-1])
        assert min(steps) >= 0
        assert kind == "diffusion" or list(steps) == sorted(steps)


def test_answers_without_an_end_may_be_left_out(run_of):
    run = run_of(decoding={"max_new_tokens": 2}, answers={"unfinished": "drop"})
    result = written(run).result
    assert result.dropped > 0
    assert len(rows_of(run.answers.out)) == result.answers == len(ROWS) - result.dropped - result.empty
    assert len(result.left_out) == result.dropped + result.empty


@pytest.mark.parametrize(
    ("change", "kind", "found"),
    [
        ({"decoding": {"seed": 6}}, CorpusError, r"decoding.seed: the file has 5, this run 6"),
        ({"answers": {"samples_per_shard": 2}}, CorpusError, r"answers.samples_per_shard: the file has 3"),
        ({"corpus": {"columns": {"user": "question"}, "on_bad_row": "skip"}}, CorpusError, "corpus_hash: the file has"),
    ],
)
def test_other_settings_are_refused(copy_of, run_of, change, kind, found):
    with pytest.raises(kind, match=found):
        written(run_of(**change))


def test_other_weights_and_changed_files_are_refused(copy_of):
    run = copy_of
    prepared = prepare_answers(run).with_weights()
    with pytest.raises(CorpusError, match=r"teacher.weights_sha256: the file has"):
        write_answers(replace(prepared, identity={**prepared.identity, "teacher.weights_sha256": "0" * 64}))
    run.answers.out.write_text("{}\n")
    with pytest.raises(CorpusError, match=r"its bytes are not those that answers\.jsonl\.record states"):
        written(run)
    record_path(run.answers.out).write_text("{")
    with pytest.raises(CorpusError, match="Nothing says what made"):
        written(run)
    record_path(run.answers.out).unlink()
    with pytest.raises(RunFileError, match=r"found .*answers.jsonl without answers.jsonl.record"):
        written(run)


@pytest.mark.parametrize(
    ("change", "kind", "found"),
    [
        ({"name": "answers.json"}, RunFileError, "expected a name that ends in .jsonl"),
        ({"decoding": {"steps_per_block": 99}}, RunFileError, "steps_per_block is 99; expected 1 to block_size"),
        ({"of_teacher": {"context": "causal"}}, RunFileError, "can be shown block or full"),
        ({"teacher": "causal", "decoding": {"threshold": 0.9, "cfg_scale": 1.0}}, RunFileError,
         r"decoding.threshold: found 0.9; a causal teacher(.|\n)*decoding.cfg_scale: found 1.0"),
        ({"decoding": {"max_new_tokens": 40000}}, PairingError, r"prompts.jsonl:1: its prompt has \d+ tokens"),
        ({"answers": {"date": "2026-01-02"}}, RunFileError, "the chat template writes no date"),
        ({"corpus": {"format": "tide-cross"}}, RunFileError, "corpus.format: found 'tide-cross'; expected 'chat'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_weights_are_loaded(run_of, causal_teacher, change, kind, found):
    change = change | ({"teacher": causal_teacher} if change.get("teacher") else {})
    with pytest.raises(kind, match=found):
        prepare_answers(run_of(**change))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "no prompt"}, "no usable field; found text"),
        ({"question": "  "}, "the prompt is empty"),
        ({"messages": []}, "the prompt is empty"),
        ({"messages": [{"role": "system", "content": "be brief"}]}, "only a system message"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": " "}]}, "last turn, of role user"),
    ],
)
def test_a_row_without_a_prompt_is_named(run_of, tmp_path, row, found):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(TideCacheError, match=rf"rows.jsonl:2: .*{found}"):
        prepare_answers(run_of(corpus={"spec": str(path)}))
    prepared = prepare_answers(run_of(corpus={"spec": str(path), "on_bad_row": "skip"}))
    assert len(prepared.skipped) == 1
    assert len(prepared.corpus) == 1
