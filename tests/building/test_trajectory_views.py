"""Views on given masks: steps of a decoding, stored, checked, joined, and read by objectives."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from tide_cache.building.driver import build_cache
from tide_cache.building.planning import plan_build, prediction
from tide_cache.building.planning.forwards import time_decoding
from tide_cache.building.prepare import prepare_build
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import CacheMismatchError, CorpusError, PairingError, RunFileError, TeacherOutputError
from tide_cache.loading.cache import CacheSource, cache_layout
from tide_cache.loading.collate import collate
from tide_cache.manifest import Manifest, verify
from tide_cache.modeling.packing import PackedInput
from tide_cache.pairing import TextTokenizer
from tide_cache.shards import ShardHeader, encode_signals
from tide_cache.training.run import train
from tide_cache.views import whole_view
from tide_cache_cli.main import app

NUM_VIEWS = 4
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, build_values):
    def make(pipeline="cross", spec=None, **changes):
        values = build_values(tmp_path_factory.mktemp("out") / "cache", pipeline, **changes)
        values["corpus"]["spec"] = spec or values["corpus"]["spec"] + "[train:6]"
        values["views"] = {"num_views": NUM_VIEWS, "source": "trajectory", **changes.get("views_", {})}
        values["signals"] = {"top_k": 8, "kinds": ["truth", "topk", "chunks"], **changes.get("signals_", {})}
        return BuildRun.model_validate(values)

    def without(pipeline="cross", spec=None, views=(), signals=(), **changes):
        run = make(pipeline, spec, **changes)
        values = run.model_dump(mode="json")
        values["views"] |= dict(views)
        values["signals"] |= dict(signals)
        return BuildRun.model_validate(values)

    return without


def source_of(run):
    return CacheSource(run.build.out, Manifest.load(run.build.out))


@pytest.fixture(scope="module")
def decoded(run_of):
    """A cache whose views are steps of the teacher's own decoding, in both passes."""
    run = run_of(build__passes=("plain", "compdemo"), signals={"codec": "compact"})
    build_cache(run)
    return run


def test_a_cache_of_steps_is_whole_and_says_its_version(decoded):
    manifest = Manifest.load(decoded.build.out)
    assert (manifest.identity.format_version, manifest.identity.views.source) == (5, "trajectory")
    assert verify(decoded.build.out, deep=True).ok
    table = pq.read_table(next((decoded.build.out / "signals/plain").glob("*.parquet")))
    assert str(table.schema.field("steps_to_reveal").type.value_type) == "uint16"


def test_a_view_masks_what_its_step_has_not_revealed(decoded):
    """Later views of a decoding mask subsets, a token's steps fall by as many as the views are apart."""
    for signal_pass in ("plain", "compdemo"):
        source = CacheSource(decoded.build.out, Manifest.load(decoded.build.out), signal_pass=signal_pass)
        views = [source.records(range(6), view) for view in range(NUM_VIEWS)]
        for of_sample in zip(*views, strict=True):
            ordered = sorted(of_sample, key=lambda record: -record.view.t)
            assert len({record.view.t for record in ordered}) > 1
            for before, after in itertools.pairwise(ordered):
                is_before_L, is_after_L = before.view.is_student_masked_L, after.view.is_student_masked_L
                assert not (is_after_L & ~is_before_L).any()
                steps_L = [np.zeros(len(is_before_L), int), np.zeros(len(is_before_L), int)]
                for steps, record in zip(steps_L, (before, after), strict=True):
                    assert record.signal.steps_to_reveal_N.min() >= 1
                    steps[record.view.is_student_masked_L] = record.signal.steps_to_reveal_N
                apart = np.unique((steps_L[0] - steps_L[1])[is_after_L])
                assert len(apart) == 1
                assert steps_L[0][is_before_L & ~is_after_L].max(initial=0) <= apart[0]


def test_the_order_is_the_teacher_s_own_under_the_true_tokens(decoded):
    """Against a loop over one sample: the surest place of the first block with masks is revealed by the true token."""
    build = prepare_build(decoded)
    backbone = load_teacher(decoded, build, "cpu").backbone
    of_sample = [source_of(decoded).records([2], view)[0] for view in range(NUM_VIEWS)]
    record = max(of_sample, key=lambda one: one.view.t)
    pair, block_size = record.pair, decoded.teacher.block_size
    is_open = torch.from_numpy(whole_view(pair).is_teacher_masked_M.copy())
    true, step_M, step = torch.from_numpy(pair.teacher_ids_M.astype(np.int64)), {}, 0
    while is_open.any():
        end = (int(is_open.int().argmax()) // block_size + 1) * block_size
        ids = torch.full((end,), build.capture.mask_id)
        ids[: len(true[:end])] = torch.where(is_open, build.capture.mask_id, true)[:end]
        block = torch.arange(end) // block_size
        mask = block[None] <= block[:, None]
        with torch.no_grad():
            hidden = backbone(PackedInput(ids[None], torch.arange(end)[None], mask[None, None]))[0]
        logits = hidden @ backbone.head_VD.T
        logits[:, build.capture.mask_id] = -torch.inf
        sure = logits.softmax(1).amax(1)[: len(true)].where(is_open[:end], torch.tensor(-1.0))
        place = int(sure.argmax())
        step_M[place], is_open[place] = step, False
        step += 1
    num_steps = max(max(step_M[m] for m in range(*chunk[:2])) for chunk in pair.chunks_C4.tolist()
                    if chunk[0] in step_M) + 1  # fmt: skip
    first = num_steps - round(record.view.t * num_steps)
    steps_L = np.zeros(len(pair.student_ids_L), int)
    steps_L[record.view.is_student_masked_L] = record.signal.steps_to_reveal_N
    for start, end, student_start, student_end in pair.chunks_C4.tolist():
        revealed = max((step_M.get(m, -1) for m in range(start, end)), default=-1)
        is_masked = record.view.is_student_masked_L[student_start:student_end]
        if revealed >= first and is_masked.any():
            assert set(steps_L[student_start:student_end][is_masked]) == {revealed - first + 1}


def test_a_step_before_the_view_is_refused_and_a_plan_counts_the_column(decoded, run_of, monkeypatch):
    rules = Manifest.load(decoded.build.out).identity.shard_rules
    records = [[source_of(decoded).records([0], view)[0] for view in range(NUM_VIEWS)]]
    bad = [[replace(r, signal=replace(r.signal, steps_to_reveal_N=r.signal.steps_to_reveal_N * 0)) for r in records[0]]]
    header = ShardHeader("0" * 16, "0" * 16, "plain", 0)
    with pytest.raises(TeacherOutputError, match="revealed before its view"):
        encode_signals(header, [0], bad, rules, "float16")
    run = run_of()
    decode_s = []
    monkeypatch.setattr(prediction, "time_decoding", lambda *of: decode_s.append(time_decoding(*of)) or decode_s[0])
    plan = plan_build(run, prepare_build(run, pairs_all=False), sample_rows=2)
    assert plan.bytes_by_column["plain"]["steps_to_reveal"] > 0
    assert plan.teacher_hours * 3600 > decode_s[0] * plan.num_samples > 0


def test_inspect_says_where_masks_come_from(decoded):
    result = CliRunner().invoke(app, ["inspect", str(decoded.build.out)])
    assert "steps of the teacher's decoding" in " ".join(result.stdout.split())


def test_objectives_read_the_steps(decoded, tmp_path):
    manifest = Manifest.load(decoded.build.out)
    tokenizer = TextTokenizer.load(decoded.student.tokenizer.path)
    records = source_of(decoded).records(range(4), 1)
    _, targets = collate(records, cache_layout(manifest, tokenizer.mask_id, tokenizer.pad_id, 8))
    assert targets.steps_to_reveal_N.tolist() == [int(n) for r in records for n in r.signal.steps_to_reveal_N]
    run = {
        "data": {"cache": str(decoded.build.out)},
        "student": {"shape": SHAPE, "tokenizer": {"path": decoded.student.tokenizer.path}},
        "objective": [{"kind": "ce", "row_weight": "soon", "horizon": 3, "time_weight": "uniform"},
                      {"kind": "chunk_kl", "row_weight": "later", "horizon": 3}],
        "train": {"out": str(tmp_path / "run"), "steps": 2, "global_batch": 4, "micro_batch": 2,
                  "precision": "float32", "device": "cpu", "log_every": 1},
    }  # fmt: skip
    train(TrainRun.model_validate(run))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(list(line["losses"].values())).all() for line in lines)


def test_an_objective_by_steps_is_refused_on_random_masks(tiny_cache, tmp_path, vocabularies):
    run = {
        "data": {"cache": str(tiny_cache)},
        "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}},
        "objective": [{"kind": "kl", "row_weight": "later"}],
        "train": {"out": str(tmp_path / "run"), "steps": 1, "global_batch": 4, "micro_batch": 2},
    }
    with pytest.raises(CacheMismatchError, match=r"views.source: cache has random masks(.|\n)*--set views.source=traj"):
        train(TrainRun.model_validate(run))


@pytest.fixture(scope="module")
def answered(corpus_file, tmp_path_factory):
    """Rows with trajectories by bytes: from the right to the left, one character a step."""
    rows = [json.loads(line) for line in corpus_file.read_text().splitlines()[:5]]
    for row in rows:
        text = row["answer"]
        row["trajectory"] = [[len(c.encode()), len(text) - 1 - k] for k, c in enumerate(text)] + [[0, len(text)]]
    path = tmp_path_factory.mktemp("answered") / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_given_trajectories_are_followed(run_of, answered, tmp_path):
    run = run_of(spec=str(answered), views={"trajectory": "given"})
    build_cache(run)
    for view in range(NUM_VIEWS):
        for record in source_of(run).records(range(5), view):
            chunks_C4 = record.pair.chunks_C4
            is_masked_C = record.view.is_student_masked_L[chunks_C4[:, 2]]
            of_answer = is_masked_C[record.pair.is_distillable_C]
            assert (np.diff(of_answer.astype(int)) <= 0).all(), "masked from the left on, revealed from the right"
    rows = [json.loads(line) for line in answered.read_text().splitlines()]
    bare, told = tmp_path / "answers.jsonl", tmp_path / "told.parquet"
    bare.write_text("".join(json.dumps({**row, "trajectory": None}) + "\n" for row in rows))
    ids = [f"0/answers.jsonl#{number}" for number in range(len(rows))]
    pq.write_table(pa.table({"sample_id": ids, "trajectory": [row["trajectory"] for row in rows]}), told)
    same = run_of(spec=str(bare), views={"trajectory": "given"}, build__trajectories=str(told))
    assert prepare_build(same).identity == prepare_build(run).identity


STRICT = """{%- for m in messages -%}
{%- if m.content == 'no' -%}{{ raise_exception('it says no') }}{%- endif -%}
{{- '<|' + m.role + '|>' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}"""


def test_a_row_that_is_left_out_needs_no_trajectory(run_of, answered, tiny_teacher, tmp_path):
    rows = [json.loads(line) for line in answered.read_text().splitlines()]
    rows.insert(1, {**rows[0], "question": "no"})
    (tmp_path / "strict.jinja").write_text(STRICT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = {"path": str(tiny_teacher), "chat_template": str(tmp_path / "strict.jinja")}
    how = {"views": {"trajectory": "given"}, "teacher__tokenizer": tokenizer}
    spec = str(tmp_path / "rows.jsonl")
    with pytest.raises(PairingError, match="1 row cannot be rendered by the chat template"):
        prepare_build(run_of(spec=spec, **how))
    build = prepare_build(run_of(spec=spec, corpus__on_bad_row="skip", **how))
    assert build.paired.report.samples == 5


@pytest.mark.parametrize(
    ("trajectory", "kind", "found"),
    [
        (None, CorpusError, "found no trajectory"),
        ("abc", CorpusError, "trajectory: found a string"),
        ([[1, -1]], CorpusError, r"found \[1, -1\]; expected a pair"),
        ([[1, 0]], PairingError, r"its trajectory is of 1 bytes, its answer has"),
        ([0, 1], PairingError, r"its trajectory has 2 steps, its answer"),
    ],
)
def test_a_trajectory_that_does_not_fit_is_refused(run_of, answered, tmp_path, trajectory, kind, found):
    row = json.loads(answered.read_text().splitlines()[0])
    row["trajectory"] = trajectory
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(kind, match=found):
        prepare_build(run_of(spec=str(tmp_path / "bad.jsonl"), views={"trajectory": "given"}))


@pytest.mark.parametrize(
    ("views", "changes", "found"),
    [
        ({"steps_per_block": 9}, {}, "views.steps_per_block: found 9; expected 1 to teacher.block_size"),
        ({}, {"build__trajectories": "x.jsonl"}, "build.trajectories: found a file"),
    ],
)
def test_what_cannot_work_is_refused(run_of, views, changes, found):
    with pytest.raises(RunFileError, match=found):
        prepare_build(run_of(views=views, **changes))
