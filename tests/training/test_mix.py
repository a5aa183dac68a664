"""Two teachers at once: each cache is read as it would be alone, and what does not fit is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.teacher_examples import write_tiny
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, CheckpointError, RunFileError
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.collate import collate
from tide_cache.loading.order import LaneOrder
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train

ALONE = World(0, 1, 0)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
ALL = ({"kind": "ce"}, {"kind": "kl"}, {"kind": "calm"}, {"kind": "chunk_kl"})


@pytest.fixture(scope="module")
def caches(tmp_path_factory, build_values, vocabularies):
    """One student tokenizer, two teachers: `same` shares the tokenizer and keeps top-k, `other` keeps chunks."""
    root = tmp_path_factory.mktemp("mix")
    tokenizer = TextTokenizer.load(str(vocabularies.first))
    write_tiny(root / "teacher", tokenizer)
    of_other = {"teacher__model": str(root / "teacher"), "signals__kinds": ("truth", "chunks")}
    build_cache(BuildRun.model_validate(build_values(root / "same")))
    other = build_values(
        root / "other", **of_other, signals__temperatures=(4.0, 1.0), views__num_views=2, views__schedule="cosine"
    )
    build_cache(BuildRun.model_validate(other))
    return root


@pytest.fixture
def make_run(tmp_path, caches, vocabularies):
    def make(name="run", objectives=ALL, data=None, block_size=8, **train_section):
        mix = [{"cache": str(caches / "same"), "weight": 3}, {"cache": str(caches / "other")}]
        section = {"out": str(tmp_path / name), "steps": 4, "global_batch": 8, "micro_batch": 8, "device": "cpu"}
        section |= {"precision": "float32", "checkpoint_every": 2, "log_every": 1}
        tokenizer = {"path": str(vocabularies.second)}
        return TrainRun.model_validate(
            {
                "student": {"shape": SHAPE, "tokenizer": tokenizer, "block_size": block_size},
                "data": data or {"mix": mix},
                "objective": objectives,
                "optimizer": {"lr": 1e-3},
                "train": section | train_section,
            }
        )

    return make


def losses(run):
    return [json.loads(line)["losses"] for line in (run.train.out / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return load_file(run.train.out / "model/model.safetensors")


def test_a_mix_of_one_is_the_run_of_that_cache_to_the_bit(make_run, caches):
    objectives = ({"kind": "ce"}, {"kind": "kl"}, {"kind": "calm"})
    plain = make_run("plain", objectives, {"cache": str(caches / "same"), "num_views": 3})
    mixed = make_run("mixed", objectives, {"mix": [{"cache": str(caches / "same"), "weight": 0.1, "num_views": 3}]})
    train(plain)
    train(mixed)
    assert losses(plain) == losses(mixed)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(mixed)[name])


def visited(source, visits):
    return [source.records([visit.sample], visit.epoch)[0] for visit in visits]


def test_each_cache_gives_the_records_of_its_own_stream(make_run, caches):
    mix = [{"cache": str(caches / "same"), "weight": 3}, {"cache": str(caches / "other")}]
    prepared = prepare(make_run(data={"mix": mix, "lanes": 1}), ALONE, resume=False)
    records = visited(prepared.source, prepared.order.visits(range(200)))
    shares = []
    for number, name in enumerate(("same", "other")):
        source = CacheSource(caches / name, Manifest.load(caches / name))
        order = LaneOrder(source.groups, Manifest.load(caches / name).identity.cache_id, 0, lanes=1)
        found = [record for record in records if record.source == number]
        shares.append(len(found))
        for one, alone in zip(found, visited(source, order.visits(range(len(found)))), strict=True):
            assert (one.pair.sample_id, one.view.view) == (alone.pair.sample_id, alone.view.view)
            assert one.signal.truth_logprobs_N.tolist() == alone.signal.truth_logprobs_N.tolist()
    assert shares[0] > shares[1] > 20
    assert max(visit.epoch for visit in prepared.order.visits(range(200))) == 3, (
        "three quarters of 200 turns, 40 samples"
    )


def test_counts_are_over_all_caches_and_lacking_signals_count_nothing(make_run):
    prepared = prepare(make_run(), ALONE, resume=False)
    records = visited(prepared.source, prepared.order.visits(range(24)))
    by_source = [[record for record in records if record.source == number] for number in (0, 1)]
    counts = [
        [objective.count(collate(part, prepared.layout)[1]) for objective in prepared.objectives]
        for part in (records, *by_source)
    ]
    ce, kl, calm, chunk_kl = range(4)
    assert counts[0] == pytest.approx([sum(of_objective) for of_objective in zip(*counts[1:], strict=True)])
    assert counts[1][kl] > 0 == counts[2][kl]
    assert counts[2][chunk_kl] > 0 == counts[1][chunk_kl]
    assert min(counts[1][ce], counts[2][ce], counts[1][calm], counts[2][calm]) > 0


def test_a_batch_of_both_is_its_samples_one_by_one(make_run):
    """What one cache lacks is never read for it, and its T, ids and schedule hold for it alone."""
    together, apart = make_run("together"), make_run("apart", micro_batch=1)
    train(together)
    train(apart)
    for one, other in zip(losses(together), losses(apart), strict=True):
        assert one == pytest.approx(other, rel=2e-5)
    for name, tensor in weights(together).items():
        torch.testing.assert_close(tensor, weights(apart)[name], rtol=2e-5, atol=2e-6)


def test_a_run_resumes_in_the_middle_of_the_mix_and_no_other_mix_does(make_run, caches):
    undisturbed, resumed = make_run("undisturbed"), make_run("resumed")
    train(undisturbed)
    with pytest.raises(ZeroDivisionError):
        train(resumed, on_step=lambda metrics, _: 1 // (3 - metrics.step))
    heavier = [entry.model_dump() | {"weight": 5.0} for entry in resumed.data.mix]
    with pytest.raises(CheckpointError, match=r"data\.mix: checkpoint has .*'weight': 3\.0.*, run declares .*5\.0"):
        train(make_run("resumed", data={"mix": heavier}), resume=True)
    train(resumed, resume=True)
    assert losses(undisturbed) == losses(resumed)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(tensor, weights(resumed)[name])


def test_a_student_says_which_caches_it_learned_from_and_how(make_run, caches):
    run = make_run(steps=1)
    train(run)
    said = json.loads((run.train.out / "model/tide_cache.json").read_text())
    identities = [Manifest.load(caches / name).identity for name in ("same", "other")]
    uses = [
        {"id": identity.cache_id, "weight": weight, "signal_pass": "plain", "num_views": None}
        for identity, weight in zip(identities, (3.0, 1.0), strict=True)
    ]
    assert said["data"] == {
        "kind": "mix",
        "id": "+".join(identity.cache_id for identity in identities),
        "caches": [
            use | {"identity": identity.model_dump(mode="json")} for use, identity in zip(uses, identities, strict=True)
        ],
    }
    assert said["run"]["data.mix"] == uses


def test_an_epoch_has_as_many_turns_as_all_caches_have_samples(make_run):
    assert prepare(make_run(steps=None, epochs=2), ALONE, resume=False).steps == 2 * (40 + 40) / 8


class TestRefusals:
    """Everything is found before a model is loaded, and told at once, cache by cache."""

    def refuse(self, run, *parts, error=CacheMismatchError):
        with pytest.raises(error) as caught:
            prepare(run, ALONE, resume=False)
        for part in parts:
            assert part in str(caught.value), str(caught.value)
        assert not run.train.out.exists()
        return str(caught.value)

    def build(self, build_values, out, *pipeline, **changes):
        build_cache(BuildRun.model_validate(build_values(out, *pipeline, **changes)))
        return str(out)

    def test_all_faults_at_once_each_with_its_cache(self, make_run, caches, tmp_path, build_values):
        foreign = self.build(build_values, tmp_path / "foreign", "cross", student__max_length=32)
        same, other = str(caches / "same"), str(caches / "other")
        mix = [
            {"cache": same}, {"cache": foreign}, {"cache": other, "signal_pass": "compdemo", "num_views": 3},
            {"cache": same, "weight": 2},
        ]  # fmt: skip
        message = self.refuse(
            make_run(data={"mix": mix}),
            "The caches of data.mix do not fit this run:",
            f"data.mix.1, {foreign}: student tokenizer, tokenizer: cache has",
            "student.max_length: cache was built for 32, data.mix.0 for 64; build it again with "
            "--set student.max_length=64",
            f"data.mix.2, {other}: data.mix.2.signal_pass: found compdemo, cache has ['plain']; add it: "
            f"tide-cache build-teacher-shards RUN.toml --out {other} --passes plain,compdemo",
            f"data.mix.2, {other}: data.mix.2.num_views: found 3, cache has 2",
            f"data.mix.3, {same}: found cache {Manifest.load(caches / 'same').identity.cache_id} twice, it is also "
            "data.mix.0; name it once, with its whole weight",
        )
        assert "data.mix.0, " not in message
        run = make_run(data={"mix": mix}, block_size=16)
        self.refuse(
            run, *(f"data.mix.{n}, {entry['cache']}: student.block_size: found 16" for n, entry in enumerate(mix))
        )

    def test_a_signal_that_no_cache_has_and_one_without_what_objectives_read(
        self, make_run, caches, tmp_path, build_values
    ):
        more = self.build(build_values, tmp_path / "more", views__seed=1, signals__tail_samples=4)
        mix = {"mix": [{"cache": str(caches / "same")}, {"cache": more}]}
        objectives = ({"kind": "kl", "tail": "sampled", "temperature": 4.0}, {"kind": "chunk_kl", "temperature": 3.0})
        message = self.refuse(
            make_run(objectives=objectives, data=mix),
            f"data.mix.0, {caches / 'same'}: temperatures: cache has [1.0, 2.0], objectives also need [4.0]; "
            "build with --set 'signals.temperatures=[1.0, 2.0, 4.0]'",
            f"data.mix.1, {more}: temperatures: cache has [1.0, 2.0], objectives also need [4.0]",
            f"data.mix.0, {caches / 'same'}: signals.tail_samples: cache has 0, an objective has tail = 'sampled'",
            "  - signals: all caches together have ['truth', 'topk'], objectives also need ['chunks']; build with "
            '--set \'signals.kinds=["truth", "topk", "chunks"]\'',
        )
        assert f"data.mix.1, {more}: signals.tail_samples" not in message

    def test_a_cache_need_not_have_the_temperature_of_a_signal_that_it_lacks(self, make_run, caches):
        """`other` has T = 4 and 1, and no top-k: kl at T = 2 is `same`'s alone."""
        assert prepare(make_run(objectives=({"kind": "kl"},)), ALONE, resume=False).layout.temperatures == (
            1,
            2,
            4,
        )
        run = make_run(objectives=({"kind": "kl", "temperature": 4.0},))
        message = self.refuse(run, f"data.mix.0, {caches / 'same'}: temperatures: cache has [1.0, 2.0]")
        assert "data.mix.1, " not in message

    def test_equal_tokens_are_asked_of_caches_that_share_none(self, make_run, caches, tmp_path, build_values):
        values = build_values(tmp_path / "none", teacher__model=str(caches / "teacher"))
        values["pairing"] = {"shared_vocab_size": 0}
        build_cache(BuildRun.model_validate(values))
        mix = [{"cache": str(tmp_path / "none")}, {"cache": str(caches / "other")}]
        run = make_run(objectives=({"kind": "kl"},), data={"mix": mix})
        self.refuse(run, "the two tokenizers share none", '--set \'signals.kinds=["truth", "chunks", "projected"]\'')

    def test_caches_that_cannot_be_read(self, make_run, caches, tmp_path):
        mix = [{"cache": str(tmp_path / "a")}, {"cache": str(caches / "same")}]
        self.refuse(make_run(data={"mix": mix}), f"{tmp_path / 'a'}: no cache here", error=CacheIncompleteError)
        mix.append({"cache": str(tmp_path / "b")})
        self.refuse(
            make_run(data={"mix": mix}), "Caches of data.mix cannot be read:\n", f"{tmp_path / 'a'}: no cache here",
            f"{tmp_path / 'b'}: no cache here",
        )  # fmt: skip

    def test_faults_of_the_run_are_told_with_those_of_the_caches(self, make_run, caches):
        mix = [{"cache": str(caches / "same"), "num_views": 9}, {"cache": str(caches / "other")}]
        run = make_run(data={"mix": mix}, block_size=None, global_batch=24)
        with pytest.raises(RunFileError) as caught:
            prepare(run, World(0, 2, 0), resume=False)
        assert "train.global_batch: found 24" in str(caught.value)
        assert "data.mix.0.num_views: found 9, cache has 4" in str(caught.value)
