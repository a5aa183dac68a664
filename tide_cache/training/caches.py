"""Whether the caches of a run fit it, and each other: tokenizer, sizes, passes, views, signals and temperatures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tide_cache.config.train import DataConfig, MixConfig, StudentConfig
from tide_cache.errors import CacheMismatchError, TideCacheError, fault_list
from tide_cache.manifest import Manifest
from tide_cache.objectives import Needs, union_of_needs
from tide_cache.pairing import TextTokenizer


@dataclass(frozen=True, eq=False)
class OpenedCache:
    """A cache of the run.

    Attributes:
        entry: How it is used.
        manifest: What it is.
        key: Where the run file speaks of it.
        where: Begins each message about it; empty when it is the only one.
    """

    entry: MixConfig
    manifest: Manifest
    key: str
    where: str

    @property
    def cache_id(self) -> str:
        """Its identity in 16 digits."""
        return self.manifest.identity.cache_id

    @property
    def signals(self) -> frozenset[str]:
        """Signals that reach the student: `topk` speaks of equal tokens, and none may be shared."""
        kinds = frozenset(self.manifest.identity.signals.kinds)
        return kinds if self.manifest.identity.pairing.shared_vocab_size else kinds - {"topk"}

    def use(self) -> dict[str, object]:
        """Say which cache it is and how it is used, for checkpoints and the final model."""
        return {"id": self.cache_id, **self.entry.model_dump(mode="json", exclude={"cache"})}


def open_caches(data: DataConfig) -> tuple[OpenedCache, ...]:
    """Read the manifests of the run's caches; none for a corpus.

    Raises:
        TideCacheError: As `Manifest.load`; lists what is wrong with each cache.
    """
    opened: list[OpenedCache] = []
    errors: list[TideCacheError] = []
    for number, entry in enumerate(data.caches):
        key, where = ("data", "") if data.mix is None else (f"data.mix.{number}", f"data.mix.{number}, {entry.cache}: ")
        try:
            opened.append(OpenedCache(entry, Manifest.load(entry.cache), key, where))
        except TideCacheError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CacheMismatchError(fault_list("Caches of data.mix cannot be read:", map(str, errors)))
    return tuple(opened)


def require_fitting_caches(
    caches: Sequence[OpenedCache], student: StudentConfig, tokenizer: TextTokenizer, needs: Sequence[Needs]
) -> None:
    """Refuse caches that do not fit the run.

    Raises:
        CacheMismatchError: Lists every fault of every cache.
    """
    if faults := cache_faults(caches, student, tokenizer, needs):
        way_out = (
            "Build another cache: `tide-cache build-teacher-shards RUN.toml --out FOLDER`, or change the run file."
        )
        subject = "The caches of data.mix do" if caches[0].where else f"{caches[0].entry.cache} does"
        raise CacheMismatchError(fault_list(f"{subject} not fit this run:", faults, way_out))


def cache_faults(
    caches: Sequence[OpenedCache], student: StudentConfig, tokenizer: TextTokenizer, needs: Sequence[Needs]
) -> list[str]:
    """List where caches do not fit: another tokenizer, block size or length; a signal, T, pass or view they lack.

    A signal may be missing from some of several caches, whose samples then carry no such target; one that is there
    must be there as the objectives read it.

    Args:
        caches: Of the run; none has no fault.
        student: Its section of the run file.
        tokenizer: The student's.
        needs: What each objective needs.
    """
    faults = []
    for number, cache in enumerate(caches):
        asked = [need for need in needs if len(caches) == 1 or need.signals & cache.signals & {"topk", "chunks"}]
        of_cache = [
            *_tokenizer_faults(cache, tokenizer),
            *_size_faults(cache, caches[0], student),
            *_use_faults(cache),
            *_twice(cache, caches[:number]),
            *_temperature_faults(cache, union_of_needs(asked)),
        ]
        faults += [cache.where + fault for fault in of_cache]
    return faults + (_signal_faults(caches, union_of_needs(needs)) if caches else [])


def _tokenizer_faults(cache: OpenedCache, tokenizer: TextTokenizer) -> list[str]:
    fingerprint, built_with = tokenizer.fingerprint(), cache.manifest.identity.student_tokenizer
    faults = [
        f"student tokenizer, {name}: cache has {built_with.get(name)}, the student's is {fingerprint.get(name)}"
        for name in sorted(fingerprint.keys() | built_with.keys())
        if built_with.get(name) != fingerprint.get(name)
    ]
    if faults:
        faults[-1] += f"; build with --student {tokenizer.name}, or train with the tokenizer of the cache"
    return faults


def _size_faults(cache: OpenedCache, first: OpenedCache, student: StudentConfig) -> list[str]:
    faults = []
    for name in ("block_size", "max_length"):
        wanted, built, of_first = (
            getattr(sizes, name)
            for sizes in (student, cache.manifest.identity.student, first.manifest.identity.student)
        )
        if wanted not in (None, built):
            faults.append(f"student.{name}: found {wanted}, the cache was built for {built}; leave it out to use that")
        elif built != of_first:
            faults.append(
                f"student.{name}: cache was built for {built}, {first.key} for {of_first}; build it again with "
                f"--set student.{name}={of_first}"
            )
    return faults


def _use_faults(cache: OpenedCache) -> list[str]:
    entry, manifest, faults = cache.entry, cache.manifest, []
    if entry.signal_pass not in manifest.passes:
        passes = ",".join([*manifest.passes, entry.signal_pass])
        faults.append(
            f"{cache.key}.signal_pass: found {entry.signal_pass}, cache has {list(manifest.passes)}; add it: "
            f"tide-cache build-teacher-shards RUN.toml --out {entry.cache} --passes {passes}"
        )
    if entry.num_views and entry.num_views > manifest.identity.views.num_views:
        faults.append(f"{cache.key}.num_views: found {entry.num_views}, cache has {manifest.identity.views.num_views}")
    return faults


def _twice(cache: OpenedCache, before: Sequence[OpenedCache]) -> list[str]:
    same = next((other.key for other in before if other.cache_id == cache.cache_id), None)
    return (
        [f"found cache {cache.cache_id} again, it is {same} too; name it once, with its whole weight"] if same else []
    )


def _temperature_faults(cache: OpenedCache, needs: Needs) -> list[str]:
    """List T, and draws from tails, that objectives need of this cache and that it lacks."""
    signals, faults = cache.manifest.identity.signals, []
    if lacking := needs.teacher_temperatures - set(signals.temperatures):
        every = sorted(needs.teacher_temperatures | set(signals.temperatures))
        faults.append(
            f"temperatures: cache has {list(signals.temperatures)}, objectives also need {sorted(lacking)}; "
            f"build with --set 'signals.temperatures={every}'"
        )
    if "tail" in needs.signals and not signals.tail_samples:
        faults.append(
            "signals.tail_samples: cache has 0, an objective has tail = 'sampled'; build with --set "
            "signals.tail_samples=16, or use tail = 'rest'"
        )
    return faults


def _signal_faults(caches: Sequence[OpenedCache], needs: Needs) -> list[str]:
    """List signals that objectives need and no cache has, with what adds them to another build."""
    kinds = [cache.manifest.identity.signals.kinds for cache in caches]
    found = list(dict.fromkeys(kind for of_cache in kinds for kind in of_cache))
    speaking = [cache for cache, of_cache in zip(caches, kinds, strict=True) if "topk" in of_cache] or caches
    shares_ids = any(cache.manifest.identity.pairing.shared_vocab_size for cache in speaking)
    faults = []
    if missing := needs.signals - {"tail"} - set(found) - (set() if shares_ids else {"topk"}):
        every = [kind for kind in ("truth", "topk", "chunks") if kind in {*found, *missing}]
        have = "cache has" if len(caches) == 1 else "all caches together have"
        faults.append(
            f"signals: {have} {found}, objectives also need {sorted(missing)}; build with "
            f"--set 'signals.kinds={json.dumps(every)}'"
        )
    if "topk" in needs.signals and not shares_ids:
        faults.append(
            "kl, reverse_kl and tidal over kl compare equal tokens, and the two tokenizers share none; use "
            "chunk_kl, calm or reverse_calm"
        )
    return faults
