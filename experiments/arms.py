"""What is compared: the arms, and the stages in which they are run, the most telling first.

An arm is cross-entropy plus the teacher's signals, with the weight that is best on the validation rows. The
cross-entropy is unweighted unless an arm says otherwise: with 1/t it is so noisy at this size that any additional term
would help, with a teacher or without.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from tide_cache.demo.design import Pipeline, slug

Entry = dict[str, Any]

CE_UNWEIGHTED: Entry = {"kind": "ce", "time_weight": "uniform"}
CE: Entry = {"kind": "ce"}
KL: Entry = {"kind": "kl", "temperature": 2.0}
CALM: Entry = {"kind": "calm", "temperature": 5.0}
REVERSE_CALM: Entry = {"kind": "reverse_calm", "temperature": 5.0}
BERNOULLI_KL: Entry = {"kind": "bernoulli_kl", "temperature": 5.0}
CHUNK_KL: Entry = {"kind": "chunk_kl", "temperature": 1.0}
TIDAL_KL: Entry = {"kind": "tidal", "over": "kl", "temperature": 2.0, "time_weight": "midrange"}
TIDAL_CALM: Entry = {"kind": "tidal", "over": "calm", "temperature": 5.0, "time_weight": "midrange"}

BASELINE = "ce, unweighted"
"""What every arm is compared with."""
WEIGHTS = (0.3, 1.0, 3.0, 10.0)
LARGE_WEIGHTS = (*WEIGHTS, 30.0)
"""For what was best at the largest weight of the others."""
STEPS = (0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TunedArm:
    """One way to train a student.

    Attributes:
        name: As tables show it.
        pipeline: `shared`: the teacher's tokenizer; `cross`: another one.
        taught: Entries of `[[objective]]` besides the cross-entropy; all are multiplied by the tuned weight.
        ce: The cross-entropy; None for none.
        tunes: What the grid holds: weights of what is taught, or shares of the steps.
        grid: Every value is tried with the first seed, and the best on the validation rows is used with all seeds.
        source: `cache`; `certain`: the cache with every teacher probability set to 1, so that no teacher is left; or
            `live`: the teacher next to the student, with fresh masks in every epoch.
        signal_pass: Of the cache.
        num_views: Of the cache's views.
        views_per_step: Of a sample, at a time; None for the size's own.
        signals: Keys of `[signals]` in which the cache differs from the usual one.
    """

    name: str
    pipeline: Pipeline
    taught: tuple[Entry, ...] = ()
    ce: Entry | None = None
    tunes: Literal["weight", "steps"] = "weight"
    grid: tuple[float, ...] = WEIGHTS
    source: Literal["cache", "certain", "live"] = "cache"
    signal_pass: Literal["plain", "compdemo"] = "plain"
    num_views: int = 8
    views_per_step: int | None = None
    signals: tuple[tuple[str, Any], ...] = ()

    def objectives(self, weight: float) -> tuple[Entry, ...]:
        """Return the entries of `[[objective]]`."""
        taught = tuple(entry | {"weight": weight} for entry in self.taught)
        return taught if self.ce is None else (self.ce, *taught)

    @property
    def slug(self) -> str:
        """Folder name."""
        return slug(self.pipeline, self.full_name)

    @property
    def full_name(self) -> str:
        """The name, and how the sample is shown where that is not as usual."""
        if self.source == "live":
            return f"{self.name}, fresh masks"
        views = "1 view" if self.num_views == 1 else f"{self.num_views} views"
        return self.name if self.num_views == 8 else f"{self.name}, {views}"


@dataclass(frozen=True)
class Stage:
    """Arms that are run on as many samples; a later stage starts when an earlier one is through.

    `tuned_on`: samples of the stage whose weights are used; None where weights are tuned here. Shares of the steps are
    always tuned here: the fewer the samples, the earlier cross-entropy is at its best.
    """

    name: str
    samples: int | None
    arms: tuple[TunedArm, ...]
    tuned_on: int | None = None


def taught(name: str, pipeline: Pipeline, *entries: Entry, **options: Any) -> TunedArm:
    """Return an arm of unweighted cross-entropy and what a teacher says."""
    return TunedArm(name, pipeline, entries, CE_UNWEIGHTED, **options)


def untaught(name: str, pipeline: Pipeline, ce: Entry, **options: Any) -> TunedArm:
    """Return an arm of cross-entropy alone, stopped at its best step."""
    return TunedArm(name, pipeline, (), ce, "steps", STEPS, **options)


TIDE_CHUNK = (CHUNK_KL, CALM | {"chunks": "without_candidates"})

FIRST = (
    untaught(BASELINE, "cross", CE_UNWEIGHTED),
    taught("chunk_kl", "cross", CHUNK_KL),
    taught("chunk_kl, p = 1", "cross", CHUNK_KL, source="certain"),
    untaught(BASELINE, "shared", CE_UNWEIGHTED),
    taught("kl", "shared", KL, grid=LARGE_WEIGHTS),
    taught("calm", "cross", CALM),
    taught("calm, p = 1", "cross", CALM, source="certain"),
)
"""What decides the question; the other arms refine it."""

FURTHER = (
    taught("reverse_calm", "cross", REVERSE_CALM),
    taught("tide-shared", "shared", TIDAL_KL, grid=LARGE_WEIGHTS, signal_pass="compdemo"),
    TunedArm("chunk_kl alone", "cross", (CHUNK_KL,), grid=(1.0,)),
    TunedArm("kl alone", "shared", (KL,), grid=(1.0,)),
)

LAST = (
    taught("tide-chunk", "cross", *TIDE_CHUNK),
    untaught("ce, 1/t", "cross", CE),
    untaught("ce, 1/t", "shared", CE),
    taught("tidal", "shared", TIDAL_KL, grid=LARGE_WEIGHTS),
    taught("bernoulli_kl", "cross", BERNOULLI_KL),
)

EXTRA = (
    taught("chunk_kl", "shared", CHUNK_KL),
    taught("tidal", "cross", TIDAL_CALM),
    taught("reverse_calm, p = 1", "cross", REVERSE_CALM, source="certain"),
    TunedArm("1/t and chunk_kl", "cross", (CHUNK_KL,), CE),
    TunedArm("1/t and kl", "shared", (KL,), CE),
)
"""What would refine it further."""

MAIN = (
    replace(FIRST[0], grid=(1.0,)),
    FIRST[1],
    replace(FIRST[3], grid=(1.0,)),
    replace(FIRST[4], grid=WEIGHTS),
)
"""What is also run on more samples. They are seen about once, so that no arm is stopped early."""

MORE = (FIRST[2], FURTHER[0], FURTHER[1])


def by_views(arm: TunedArm) -> tuple[TunedArm, ...]:
    """Return cross-entropy, and an arm with more and fewer views, for samples so few that every view comes again."""
    shown: tuple[dict[str, Any], ...] = (
        {"num_views": 1}, {"num_views": 8}, {"source": "live"}, {"num_views": 4}, {"num_views": 2}
    )  # fmt: skip
    ce = replace(untaught(BASELINE, arm.pipeline, CE_UNWEIGHTED), views_per_step=1)
    return ce, *(replace(arm, views_per_step=1, **options) for options in shown)


SIGNALS = (
    taught("kl", "shared", KL, grid=(1.0,)),
    taught("kl, T = 1", "shared", KL | {"temperature": 1.0}, grid=(1.0,)),
    *(
        taught(f"kl, {name}", "shared", KL, grid=(1.0,), signals=tuple(signals.items()))
        for name, signals in (
            ("k = 4", {"top_k": 4}),
            ("k = 16", {"top_k": 16}),
            ("top_p = 0.9", {"top_p": 0.9}),
        )
    ),
    taught("chunk_kl", "cross", CHUNK_KL, grid=(1.0,)),
    taught("chunk_kl, T = 2", "cross", CHUNK_KL | {"temperature": 2.0}, grid=(1.0,)),
    taught("chunk_kl, k = 16", "cross", CHUNK_KL, grid=(1.0,), signals=(("top_k", 16),)),
    taught("chunk_kl, k = 256", "cross", CHUNK_KL, grid=(1.0,), signals=(("top_k", 256),)),
    taught("calm", "cross", CALM, grid=(1.0,)),
    taught("calm, T = 1", "cross", CALM | {"temperature": 1.0}, grid=(1.0,)),
)
"""Where nothing else is said, k = 64, top_p = 0.99, and T is 2 for kl, 1 for chunk_kl and 5 for calm."""

KEPT: Entry = {"temperature": 2.0, "temperature_mode": "kept"}
UNCERTAIN: Entry = {"row_weight": "uncertain", "share": 0.2}
PROJECTED = (("kinds", ("truth", "chunks", "projected")),)
"""One cache for all arms across tokenizers, so that they visit samples in one order."""


ASKED_AGAIN = (*PROJECTED, ("chunk_passes", 3))
"""The same, where the teacher is asked for a chunk token after token; samples come in another order."""
UP, AROUND = (1.0, 3.0, 10.0), (1.0, 3.0, 0.3)
"""Weights: 300 samples want less of a teacher with another tokenizer than of one with the student's."""


def across(name: str, *entries: Entry, signals: tuple[tuple[str, Any], ...] = PROJECTED, **options: Any) -> TunedArm:
    """Return an arm across tokenizers that reads candidate chunks or what is projected."""
    return taught(name, "cross", *entries, **{"grid": (1.0,), "signals": signals, **options})


def kept_arms(
    signals: tuple[tuple[str, Any], ...], suffix: str = "", grid: tuple[float, ...] = AROUND
) -> tuple[TunedArm, ...]:
    """Return the arms across tokenizers with T = 2 among the kept: each way to tell, and both at once."""
    told = {
        "chunk_kl": (CHUNK_KL | KEPT,),
        "kl on projected": (KL | KEPT,),
        "chunk_kl and kl on projected": (CHUNK_KL | KEPT, KL | KEPT),
    }
    return tuple(
        across(f"{name}, T = 2 among the kept{suffix}", *entries, grid=grid, signals=signals)
        for name, entries in told.items()
    )


T_4: Entry = {"temperature": 4.0, "temperature_mode": "kept"}
AGAIN = ", token after token"
KL_KEPT = taught("kl, T = 2 among the kept", "shared", KL | KEPT, grid=UP)

SHARE = (
    replace(untaught(f"{BASELINE}, same order", "cross", CE_UNWEIGHTED), grid=(1.0,), signals=PROJECTED),
    replace(untaught(BASELINE, "shared", CE_UNWEIGHTED), grid=(1.0,)),
    taught("kl, T = 1", "shared", KL | {"temperature": 1.0}, grid=(1.0,)),
    KL_KEPT,
    across("chunk_kl, T = 1", CHUNK_KL),
    *kept_arms(PROJECTED),
    *kept_arms(ASKED_AGAIN, AGAIN),
    across("chunk_kl, T = 2 among the kept, uncertain rows", CHUNK_KL | KEPT | UNCERTAIN),
    across("kl on projected, T = 2 among the kept, uncertain rows", KL | KEPT | UNCERTAIN),
    across("x-token", KL | {"temperature": 1.0, "tail": "renormalise", "per": "chunk"}),
    across(f"chunk_kl, T = 2 among the kept, fits{AGAIN}", CHUNK_KL | KEPT | {"tail": "fits"}, signals=ASKED_AGAIN),
    taught("kl, T = 4 among the kept", "shared", KL | T_4, grid=(1.0,)),
    across("chunk_kl, T = 4 among the kept", CHUNK_KL | T_4),
    across("chunk_kl, T = 1, p = 1", CHUNK_KL, source="certain"),
)
"""How much of what a teacher with the student's tokenizer gains is kept with another tokenizer."""

FEW = (
    untaught(f"{BASELINE}, same order", "cross", CE_UNWEIGHTED, signals=ASKED_AGAIN),
    untaught(f"{BASELINE}, same order", "shared", CE_UNWEIGHTED),
    KL_KEPT,
    *kept_arms(ASKED_AGAIN, AGAIN, UP),
    across(f"chunk_kl, T = 2 among the kept, p = 1{AGAIN}", CHUNK_KL | KEPT, source="certain", signals=ASKED_AGAIN),
)
"""The same for samples so few that cross-entropy may be best before the last step."""

SHARE_STAGES = {
    "": Stage("share of gain kept", 300, SHARE),
    "_100_samples": Stage("share of gain kept, 100 samples", 100, FEW),
}
"""By what their figures' names end with."""

STAGES = (
    Stage("300 samples", 300, FIRST),
    Stage("300 samples, further arms", 300, FURTHER),
    Stage("1000 samples", 1000, MAIN, tuned_on=300),
    Stage("views", 100, by_views(taught("kl", "shared", KL, grid=(1.0,)))),
    Stage("300 samples, last arms", 300, LAST),
    Stage("all samples", None, MAIN),
    Stage("signals", 300, SIGNALS),
    Stage("views, another tokenizer", 100, by_views(taught("chunk_kl", "cross", CHUNK_KL, grid=(1.0,)))),
    Stage("300 samples, controls and others", 300, EXTRA),
    Stage("all samples, more arms", None, MORE),
    Stage("1000 samples, more arms", 1000, MORE, tuned_on=300),
    *SHARE_STAGES.values(),
)
"""In order of priority: a cut loses the end."""
