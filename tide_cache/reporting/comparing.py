"""Comparison of several runs: those that differ only in seeds are one arm, and arms are paired by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tide_cache.evaluation.comparison import Comparison, Spread, compare, spread
from tide_cache.reporting.runs import Evaluation, RunFigures
from tide_cache.wording import leaves

SEEDS = {"train.seed", "data.seed", "student.shape.init_seed"}
NOT_COMPARED = SEEDS | {"train.out"}


@dataclass(frozen=True)
class ArmRuns:
    """Runs that differ only in seeds; `name` says what distinguishes them from other arms."""

    name: str
    runs: tuple[RunFigures, ...]


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the table.

    Attributes:
        arm: Its name.
        seeds: Seeds of its runs.
        measure: The table's measure, compared with the first arm, paired by seed; None if a run lacks it.
        accuracy: Held-out accuracy.
        nats_per_byte: Held-out NLL by bytes.
        agreement_kl: KL(teacher || student), in nats.
    """

    arm: str
    seeds: tuple[int, ...]
    measure: Comparison | None
    accuracy: Spread | None
    nats_per_byte: Spread | None
    agreement_kl: Spread | None


@dataclass(frozen=True)
class ComparisonTable:
    """All arms; `measure` says what is compared (lower is better), `remarks` what is not."""

    measure: str
    rows: tuple[ComparisonRow, ...]
    remarks: tuple[str, ...]


def make_arms(runs: Sequence[RunFigures]) -> tuple[ArmRuns, ...]:
    """Group runs into arms, in the order in which they were given.

    Args:
        runs: If two have the same settings and seed, each run with these settings is a separate arm.
    """
    settings = [{k: v for k, v in leaves(run.settings) if k not in NOT_COMPARED} for run in runs]
    groups: list[list[int]] = []
    for index in range(len(runs)):
        same = next((group for group in groups if settings[group[0]] == settings[index]), None)
        if same is None:
            groups.append([index])
        else:
            same.append(index)
    for group in list(groups):
        if len({runs[index].seed for index in group}) < len(group):
            at = groups.index(group)
            groups[at : at + 1] = [[index] for index in group]
    named = [_name(group, groups, runs, settings) for group in groups]
    return tuple(
        ArmRuns(name if named.count(name) == 1 else runs[group[0]].name, tuple(runs[index] for index in group))
        for name, group in zip(named, groups, strict=True)
    )


def _name(
    group: list[int], groups: list[list[int]], runs: Sequence[RunFigures], settings: Sequence[dict[str, str]]
) -> str:
    """Return an arm's name: its objectives, and what else distinguishes it from arms with the same ones."""
    label, mine = runs[group[0]].objectives, settings[group[0]]
    alike = [settings[other[0]] for other in groups if runs[other[0]].objectives == label]
    keys = sorted(set().union(*alike))
    differing = [key for key in keys if len({other.get(key) for other in alike}) > 1]
    return ", ".join([label, *(f"{key.rpartition('.')[2]} {mine.get(key, '-')}" for key in differing[:3])])


def compare_arms(arms: Sequence[ArmRuns]) -> ComparisonTable:
    """Compare arms by held-out NLL if all runs have it, otherwise by NLL on the training views.

    Args:
        arms: The first one is the baseline.
    """
    runs = [run for arm in arms for run in arm.runs]
    shared = shared_evaluations(runs)
    if shared is None:
        remark = "No evaluation that all runs share: run `tide-cache eval RUN/model --dataset ... --out RUN/eval.json`."
        name = "NLL on the training views, mean over t, last tenth of the run (nats per token)"
        return ComparisonTable(name, tuple(_rows(arms, _training_nll, None)), (remark,))
    one_tokenizer = len({entry.nll.num_supervised for entry in shared.values()}) == 1
    name = f"held-out NLL ({'nats per token' if one_tokenizer else 'nats per byte'})"
    remarks = () if one_tokenizer else ("Tokens differ between the runs: NLL is compared by bytes of text.",)

    def measure(run: RunFigures) -> float | None:
        nll = shared[run.name].nll
        return nll.mean_nll if one_tokenizer else nll.nats_per_byte

    return ComparisonTable(name, tuple(_rows(arms, measure, shared)), remarks)


def shared_evaluations(runs: Sequence[RunFigures]) -> dict[str, Evaluation] | None:
    """Return each run's evaluation on the same questions, by the run's name; None if they share none.

    Args:
        runs: Runs with different names.
    """
    by_question = [{_question(entry): entry for entry in run.evaluations} for run in runs]
    for question in by_question[0]:
        if all(question in entries for entries in by_question):
            return {run.name: entries[question] for run, entries in zip(runs, by_question, strict=True)}
    return None


def _question(entry: Evaluation) -> tuple[object, ...]:
    nll = entry.nll
    return Path(entry.dataset).name, entry.max_length, nll.context, nll.seed, nll.num_samples


def _training_nll(run: RunFigures) -> float | None:
    known = [value for value in run.nll_stages[-1].nll if value is not None]
    return sum(known) / len(known) if known else None


def _rows(
    arms: Sequence[ArmRuns], measure: Callable[[RunFigures], float | None], shared: dict[str, Evaluation] | None
) -> list[ComparisonRow]:
    values = [{run.seed: measure(run) for run in arm.runs} for arm in arms]
    known = [{seed: value for seed, value in of_arm.items() if value is not None} for of_arm in values]
    rows = []
    for index, arm in enumerate(arms):
        entries = [shared[run.name] for run in arm.runs] if shared else []
        agreements = [entry.agreement.overall.kl for entry in entries if entry.agreement is not None]
        rows.append(
            ComparisonRow(
                arm=arm.name,
                seeds=tuple(run.seed for run in arm.runs),
                measure=compare(known[index], known[0] if index else None) if known[index] else None,
                accuracy=_spread([entry.nll.mean_accuracy for entry in entries]),
                nats_per_byte=_spread([entry.nll.nats_per_byte for entry in entries]),
                agreement_kl=_spread(agreements),
            )
        )
    return rows


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def arm_settings(arms: Sequence[ArmRuns]) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Return the settings in which arms differ, one value for each arm, and those that all share."""
    of_arms = [{k: v for k, v in leaves(arm.runs[0].settings) if k not in NOT_COMPARED} for arm in arms]
    names = list(dict.fromkeys(name for settings in of_arms for name in settings))
    values = {name: [settings.get(name, "-") for settings in of_arms] for name in names}
    differing = [[name, *row] for name, row in values.items() if len(set(row)) > 1]
    return differing, [(name, row[0]) for name, row in values.items() if len(set(row)) == 1]
