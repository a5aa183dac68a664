"""Ctrl-C leaves a state that the same command continues, and says how."""

NUM_STEPS = 100


def require_resumed_training(run):
    assert run.code == 130, run.err
    assert run.err.count("a checkpoint is committed. Run the same command with --resume to continue.") == 1
    assert run.lines_when_stopped < NUM_STEPS
    assert run.again.returncode == 0, run.again.stderr
    steps = [line.split(",")[0] for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {step}' for step in range(1, NUM_STEPS + 1)], "no step is lost or taken twice"
    assert (run.out / "model" / "model.safetensors").exists()


def test_training_stops_at_a_checkpoint_and_resumes(workshop, tmp_path, stopped_run):
    out = tmp_path / "student"
    steps = ["--set", f"train.steps={NUM_STEPS}", "--set", "train.checkpoint_every=0"]
    command = ["train", "train.toml", "--dataset", "tasks.jsonl", "--out", out, *steps]
    metrics = out / "metrics.jsonl"

    def is_under_way():
        return metrics.exists() and metrics.read_text().count("\n") >= 2

    require_resumed_training(stopped_run(workshop, command, out, is_under_way, ["--resume"]))


def test_training_in_two_processes_stops_once_for_both(student_run):
    require_resumed_training(student_run)


def test_a_build_stops_between_forwards_and_goes_on(workshop, tmp_path, stopped_run):
    out = tmp_path / "cache"
    sizes = {"build.samples_per_shard": 1, "build.batch_tokens": 64, "views.num_views": 40}
    command = ["build-teacher-shards", "build.toml", "--out", out]
    command += [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    records = out / "signals" / "plain"
    run = stopped_run(workshop, command, out, lambda: any(records.glob("*.json")))
    assert run.code == 130, run.err
    assert f"of 24 shards committed in {out}. Run the same command again to continue." in run.err
    assert run.again.returncode == 0, run.again.stderr
    num_reused = int(run.again.stdout.split("24 (")[1].split(" already existed")[0])
    assert 0 < num_reused < 24
    assert (out / "manifest.json").exists()
