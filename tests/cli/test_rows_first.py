"""A row that the chat template refuses is known before the teacher is asked, however late it stands."""

import json

import pytest

STRICT = """{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ raise_exception('no system turn') }}{%- endif -%}
{{- '<|' + m.role + '|>' + m.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


@pytest.fixture(scope="module")
def late(workshop, tmp_path_factory):
    """Rows of which the last but one is refused, and a template for the teacher."""
    folder = tmp_path_factory.mktemp("late")
    rows = [json.loads(line) for line in (workshop.root / "tasks.jsonl").read_text().splitlines()]
    system = {"role": "system", "content": "Be short."}
    bad = {"messages": [system, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (folder / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:-1], bad, rows[-1]]))
    (folder / "strict.jinja").write_text(STRICT)
    return folder


def options(late, workshop):
    return [
        *("build.toml", "--dataset", late / "late.jsonl", "--out", late / "cache"),
        *("--set", f"student.tokenizer.chat_template={late / 'strict.jinja'}"),
    ]


@pytest.mark.parametrize("command", [["build-teacher-shards"], ["build-teacher-shards", "--dry-run"], ["plan"]])
def test_the_row_is_listed_and_nothing_is_written(late, workshop, call, command):
    done = call(*command, *options(late, workshop))
    assert done.exit_code == 3
    assert "1 row cannot be rendered by the chat template" in done.stderr
    assert "late.jsonl:24: " in done.stderr
    assert "no system turn" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (late / "cache").exists()


def test_the_row_is_left_out_and_counted_and_the_rest_is_built(late, workshop, installed):
    """The counts come before the first forward."""
    command = ["build-teacher-shards", *options(late, workshop), "--on-bad-row", "skip", "--json"]
    done = installed(*command, cwd=workshop.root)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["num_samples"] == 24
    assert summary["dropped"] == {"the chat template fails on it": 1}
    assert done.stderr.index("25 rows: 24 samples, 1 left out") < done.stderr.index("build")
    assert "left out: late.jsonl:24: " in done.stderr
    assert any("25 rows: 24 samples, 1 left out" in remark for remark in summary["remarks"])
    inspected = json.loads(installed("inspect", late / "cache", "--json", cwd=workshop.root).stdout)
    assert inspected["remarks"] == summary["remarks"], "who comes later is told too"
    assert "25 rows: 24 samples, 1 left out" in installed("inspect", late / "cache", cwd=workshop.root).stdout
    again = installed(*command, "--workers", "2", cwd=workshop.root)
    assert json.loads(again.stdout)["cache_id"] == summary["cache_id"]


def test_training_and_measuring_on_such_rows_say_the_same(late, workshop, call):
    dataset, template = late / "late.jsonl", late / "strict.jinja"
    train = ["train", "train.toml", "--dataset", dataset, "--out", late / "student", "--dry-run"]
    train += ["--set", f"student.tokenizer.chat_template={template}"]
    refused = call(*train)
    assert refused.exit_code == 3
    assert "data.corpus.on_bad_row = 'skip'" in refused.stderr
    taken = call(*train, "--on-bad-row", "skip")
    assert taken.exit_code == 0
    assert "25 rows: 24 samples, 1 left out" in taken.stderr
