"""The command line: collects the subcommands, and turns errors into messages and exit codes."""

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tide_cache.disk import told_refusal
from tide_cache.errors import Interrupted, TideCacheError
from tide_cache.launchers import is_first
from tide_cache.version import __version__

from .answers import answers
from .build_teacher_shards import build_teacher_shards
from .console import complain
from .convert import convert
from .demo import demo
from .doctor import doctor
from .evaluate import EvalCommand, evaluate
from .evaluate_tasks import evaluate_tasks
from .export import export
from .export_model import export_model
from .generate import generate
from .import_topk import import_topk
from .inspect_cache import inspect_cache
from .plan import plan
from .push import push
from .repair import repair
from .report import report
from .schema import schema
from .sweep import sweep
from .train import train_student
from .verbosity import choose_verbosity
from .verify import verify_cache

FAILED = 1
INTERRUPTED = 130
EXIT_CODES = "\n\n".join(
    [
        "Exit codes: 0 success; 1 the run failed; 2 bad invocation or run file; 3 the data was refused; 130, 143 "
        "stopped by a signal.",
        "`TIDE_CACHE_LOG=quiet|normal|verbose` replaces --quiet and --verbose; "
        "`NO_COLOR=1` and `FORCE_COLOR=1` turn colours off and on.",
    ]
)


class _Commands(TyperGroup):
    """The subcommands; a user's mistake shows a message, a fault of ours a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except Interrupted as error:
            complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except TideCacheError as error:
            complain(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if (told := told_refusal(error)) is None:
                raise
            complain(f"error: {told}")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            if is_first(os.environ):
                complain("Interrupted before any work was done; run the same command again.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="tide-cache",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"tide-cache {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print what libraries log.")] = False,
) -> None:
    """Offline distillation for diffusion language models: run each teacher once, train many students from it."""
    choose_verbosity(quiet, verbose)


def _example(*lines: str) -> str:
    return "\n\n".join(["Example:", *(f"`{line}`" for line in lines)])


# Commands in the order in which a user meets them, one line each.
app.command("demo", epilog=_example("tide-cache demo --out demo-output"))(demo)
app.command(
    "plan", epilog=_example("tide-cache plan build.toml", "tide-cache plan build.toml --workers 8 --epochs 3 --json")
)(plan)
app.command(
    "build-teacher-shards",
    epilog=_example(
        "tide-cache build-teacher-shards build.toml",
        "tide-cache build-teacher-shards --teacher runs/teacher/model --student tokenizers/qwen "
        "--dataset chats.jsonl --out cache",
        "tide-cache build-teacher-shards build.toml --workers 8",
        "tide-cache build-teacher-shards build.toml --executor ray --ray-address HEAD:6379 --workers 32",
        "tide-cache build-teacher-shards build.toml --shard-range auto",
    ),
)(build_teacher_shards)
app.command(
    "answers",
    epilog=_example(
        "tide-cache answers --teacher SDAR-1.7B-Chat --dataset prompts.jsonl --out answers.jsonl --threshold 0.9",
        "tide-cache answers answers.toml --workers 8 --seed 1",
    ),
)(answers)
app.command(
    "import-topk",
    epilog=_example(
        "tide-cache import-topk --run build.toml --write-prompts prompts.jsonl --top-k 64",
        "tide-cache import-topk topk.jsonl --run build.toml --engine 'vllm 0.11.0' --out cache",
    ),
)(import_topk)
app.command("convert", epilog=_example("tide-cache convert Qwen/Qwen3-0.6B --out students/qwen3-0.6b"))(convert)
app.command(
    "train",
    epilog=_example(
        "tide-cache train train.toml --num-gpus 8",
        "tide-cache train --student checkpoint --cache cache --objective ce --objective kl:0.5 --out runs/student "
        "--set train.epochs=10",
    ),
)(train_student)
app.command(
    "sweep",
    epilog=_example(
        "tide-cache sweep student.toml --preset shared/bd3lm --preset shared/kl --seeds 3 --held-out held-out.jsonl",
        "tide-cache sweep student.toml --objective ce --objective ce+kl:0.5 --jobs 8 --out runs/sweep",
    ),
)(sweep)
app.command("inspect", epilog=_example("tide-cache inspect cache", "tide-cache inspect cache --view 3 --tokenizer t"))(
    inspect_cache
)
app.command(
    "report",
    epilog=_example(
        "tide-cache report cache --tokenizer tokenizers/qwen",
        "tide-cache report runs/student",
        "tide-cache report --compare runs/ce-seed-0 runs/ce-seed-1 runs/kl-seed-0 runs/kl-seed-1",
    ),
)(report)
app.command(
    "export",
    epilog=_example(
        "tide-cache export cache --view 0 --out view-0.parquet",
        "tide-cache export cache --view 3 --pass compdemo --student tokenizers/qwen --text --out view-3.jsonl.zst",
    ),
)(export)
app.command(
    "export-model",
    epilog=_example(
        "tide-cache export-model runs/student --format sdar --out served/student",
        "tide-cache export-model runs/student --format hf --out students/stock",
    ),
)(export_model)
app.command(
    "push",
    epilog=_example("tide-cache push runs/student me/student --private", "tide-cache push cache me/teacher-cache"),
)(push)
app.command("verify", epilog=_example("tide-cache verify cache --deep"))(verify_cache)
app.command("repair", epilog=_example("tide-cache repair cache", "tide-cache repair cache --dry-run"))(repair)
app.command(
    "eval",
    cls=EvalCommand,
    epilog=_example("tide-cache eval runs/student/model --dataset held-out.jsonl --cache cache --json"),
)(evaluate)
app.command(
    "eval-tasks",
    epilog=_example(
        "tide-cache eval-tasks runs/student/model --suite tide --allow-code-execution --out runs/student/eval"
    ),
)(evaluate_tasks)
app.command("generate", epilog=_example('tide-cache generate runs/student/model --prompt "reverse: one two three"'))(
    generate
)
app.command("doctor", epilog=_example("tide-cache doctor", "tide-cache doctor --teachers"))(doctor)
app.command("schema", epilog=_example("tide-cache schema --check schemas"))(schema)


def run() -> None:
    """Run the command line and exit: the console script."""
    app()


if __name__ == "__main__":
    run()
