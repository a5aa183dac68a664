"""From task names to lm-eval tasks: their definitions, our settings for them, and their data.

A task of the command line may consist of many of lm-eval's: MMLU has one for each subject.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset, DatasetDict
from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import GROUP_FIELD_NAMES
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from tide_cache.errors import EvaluationError, RunFileError
from tide_cache.evaluation.harness.generation import BUDGET, normalised, without_effect
from tide_cache.evaluation.harness.local_data import Wanted, find_files, read_rows
from tide_cache.evaluation.harness.programs import PROGRAMS, scored_by
from tide_cache.evaluation.harness.sandbox import Sandbox
from tide_cache.evaluation.harness.suite import INSTALL, TaskSettings
from tide_cache.unreadable import told_apart

Config = dict[str, Any]
_ROOT = Path(lm_eval.tasks.__file__).parent

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every task with default settings


@dataclass(frozen=True)
class DefinedTask:
    """A task as it will be run, before its data is opened.

    Attributes:
        settings: Its settings, from the suite.
        configs: lm-eval configurations, complete except for the location of the data.
        files: Local files of each split; empty if the hub's are used.
    """

    settings: TaskSettings
    configs: tuple[Config, ...]
    files: Mapping[Wanted, tuple[Path, ...]]

    def identity(self) -> str:
        """Return a digest of prompts, budgets, metrics and local data: equal digests mean the same questions."""
        digest = hashlib.sha256(json.dumps(self.configs, sort_keys=True, default=_name_of).encode())
        for wanted in sorted(self.files, key=str):
            for path in self.files[wanted]:
                with told_apart(path), path.open("rb") as stream:
                    digest.update(f"{wanted}{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
        return digest.hexdigest()

    @property
    def writes(self) -> bool:
        """Whether answers are written, rather than likelihoods compared."""
        return any(config.get("output_type") == "generate_until" for config in self.configs)

    def without_effect(self) -> list[str]:
        """Return the names of generation settings that the sampler ignores."""
        named = [name for config in self.configs for name in without_effect(config.get("generation_kwargs") or {})]
        return list(dict.fromkeys(named))

    def open(self) -> dict[str, ConfigurableTask]:
        """Read the data and return lm-eval's tasks, by name.

        Raises:
            EvaluationError: The data is not available.
        """
        return {config["task"]: self._open(config) for config in self.configs}

    def _open(self, config: Config) -> ConfigurableTask:
        if self.files:
            splits = {wanted.split: wanted for wanted in _wanted(config)}
            rows = {split: read_rows(self.files[wanted]) for split, wanted in splits.items()}
            data = DatasetDict({split: Dataset.from_list(entries) for split, entries in rows.items()})
            config = {**config, "custom_dataset": lambda **_: data}
        try:
            with told_apart(str(config.get("dataset_path"))):
                return ConfigurableTask(config=config)
        except (OSError, ValueError, KeyError, TemplateError) as error:
            where = f"{config.get('dataset_path')} {config.get('dataset_name') or ''}".strip()
            raise EvaluationError(
                f"{config['task']}: its data cannot be read: looked for {where} "
                f"{'in --task-data' if self.files else 'on the hub and in its local cache'}: {error}. Without a "
                "network give a folder: --task-data FOLDER; docs/evaluation.md says what belongs into it."
            ) from error


def define_tasks(chosen: Sequence[TaskSettings], task_data: Path | None, sandbox: Sandbox | None) -> list[DefinedTask]:
    """Return definitions of all tasks, with the places of local data; nothing is read yet.

    Args:
        chosen: From `choose_tasks`.
        task_data: Folder of local data; None for the hub.
        sandbox: Runs a model's programs; None if the user has not allowed that.

    Raises:
        RunFileError: There is no such task, it cannot be run, or it runs code without consent.
        EvaluationError: Local data is missing; lists all of it. Or the sandbox does not work on this machine.
    """
    configs = {task: tuple(_configs(task)) for task in chosen}
    for task in chosen:
        _require_safe_code(task, configs[task], sandbox)
    protocols = {
        task: tuple(_with_protocol(task, config, sandbox) for config in found) for task, found in configs.items()
    }
    wanted = {task: [w for config in found for w in _wanted(config)] for task, found in protocols.items()}
    files = find_files(task_data, [w for entries in wanted.values() for w in entries]) if task_data else {}
    return [
        DefinedTask(task, protocols[task], {w: files[w] for w in wanted[task]} if task_data else {}) for task in chosen
    ]


def _configs(settings: TaskSettings) -> Iterator[Config]:
    """Yield the definitions of lm-eval's tasks that make up one of ours."""
    overlay = load_yaml(settings.overlay) if settings.overlay else {}
    if settings.source is None:
        yield overlay
        return
    if (path := Path(settings.source)).suffix == ".yaml":
        if not path.is_file():
            raise RunFileError(f"--tasks {path}: found no such file; expected an lm-eval task, or the name of one")
        yield load_yaml(path)
        return
    include = [str(_ROOT / folder) for folder in settings.folders]
    index = TaskManager(include_path=include, include_defaults=not include).task_index
    if settings.source not in index:
        raise RunFileError(f"--tasks {settings.source}: lm-eval has no such task; `lm_eval ls tasks` lists them")
    for entry, changes in _leaves(index, settings.source, {}):
        if entry.kind is not Kind.TASK:
            raise RunFileError(
                f"--tasks {settings.name}: {entry.name} is written as a Python class, which cannot be run"
            )
        # a code task's functions are not loaded: its module runs a program, and gets the metric from the hub
        functions = not entry.cfg.get("unsafe_code", False)
        try:
            definition = load_yaml(entry.yaml_path, resolve_func=functions)
        except (ImportError, AssertionError) as error:
            raise RunFileError(f"--tasks {settings.name}: {error}\n{INSTALL}") from None
        yield {**definition, **changes, **overlay}


def _leaves(index: Mapping[str, Any], name: str, changes: Config) -> Iterator[tuple[Any, Config]]:
    """Yield the single tasks of groups and tags, with what the groups change in them."""
    entry = index[name]
    if entry.kind is Kind.TAG:
        for child in sorted(entry.tags):
            yield from _leaves(index, child, changes)
    elif entry.kind is Kind.GROUP:
        yield from _members(index, entry.cfg, changes)
    else:
        yield entry, changes


def _members(index: Mapping[str, Any], group: Config, changes: Config) -> Iterator[tuple[Any, Config]]:
    for item in group["task"]:
        member = item if isinstance(item, dict) else {"task": item}
        changed = {**_task_entries(group), **changes, **_task_entries(member)}
        if isinstance(member.get("task"), list):
            yield from _members(index, member, changed)
        else:
            yield from _leaves(index, member.get("task") or member["group"], changed)


def _task_entries(group: Config) -> Config:
    return {name: value for name, value in group.items() if name not in GROUP_FIELD_NAMES}


def _require_safe_code(settings: TaskSettings, configs: Sequence[Config], sandbox: Sandbox | None) -> None:
    if not any(config.get("unsafe_code", False) for config in configs):
        return
    if settings.name not in PROGRAMS:
        raise RunFileError(
            f"--tasks {settings.name}: it runs programs that the model writes, without a sandbox. Of such tasks only "
            f"{', '.join(PROGRAMS)} can be run"
        )
    if sandbox is None:
        raise RunFileError(
            f"{settings.name} runs programs that the model writes. Consent with --allow-code-execution: each runs in a "
            "separate process, without network, with read-only files and a time limit; or leave code tasks out, "
            "by naming the others: --tasks"
        )
    sandbox.require_works()


def _with_protocol(settings: TaskSettings, config: Config, sandbox: Sandbox | None) -> Config:
    """Return a definition with our budget, shots and sandbox."""
    config = {key: value for key, value in config.items() if key not in {"tag", "group", "task_list"}}
    shots = config.get("num_fewshot") or 0 if settings.shots is None else settings.shots
    if shots == 0:
        for name in ("fewshot_split", "fewshot_config", "training_split"):
            config.pop(name, None)
    if config.get("output_type") == "generate_until":
        generation = normalised({"until": [], **(config.get("generation_kwargs") or {})}, BUDGET, settings.name)
        new_tokens = settings.new_tokens or generation["max_gen_toks"]
        config["generation_kwargs"] = generation | {"max_gen_toks": new_tokens, "steps": settings.steps or new_tokens}
    if sandbox is not None and config.get("unsafe_code", False):
        config |= scored_by(sandbox, settings.name)
    return config | {"num_fewshot": shots}


def _wanted(config: Config) -> list[Wanted]:
    """Return the splits that a task reads: that of its questions and that of its examples."""
    splits = [config.get("test_split") or config.get("validation_split")]
    if config["num_fewshot"] > 0:
        few = config.get("fewshot_config") or {}
        if not few.get("samples"):
            splits.append(few.get("split") or config.get("fewshot_split") or config.get("training_split"))
    names = dict.fromkeys(split for split in splits if split)
    return [Wanted(str(config.get("dataset_path")), config.get("dataset_name"), split) for split in names]


def _name_of(value: Any) -> str:
    """Return what represents a function in a digest."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
