"""Check that the caches of a run fit its student, its objectives and each other."""

import json
from collections.abc import Sequence

from tide_cache.errors import CacheMismatchError, differing, fault_list
from tide_cache.loading.opening import OpenedCache
from tide_cache.objectives import Needs, union_of_needs
from tide_cache.pairing import TextTokenizer


def require_fitting_caches(
    caches: Sequence[OpenedCache],
    tokenizer: TextTokenizer,
    needs: Sequence[Needs],
    block_size: int | None = None,
    max_length: int | None = None,
) -> None:
    """Raise an error if caches do not fit the run; the arguments are those of `cache_faults`.

    Raises:
        CacheMismatchError: Lists every fault of every cache.
    """
    if faults := cache_faults(caches, tokenizer, needs, block_size, max_length):
        way_out = (
            "Build another cache: `tide-cache build-teacher-shards RUN.toml --out FOLDER`, or change the run file."
        )
        subject = "The caches of data.mix do" if caches[0].where else f"{caches[0].root} does"
        raise CacheMismatchError(fault_list(f"{subject} not fit this run:", faults, way_out))


def cache_faults(
    caches: Sequence[OpenedCache],
    tokenizer: TextTokenizer,
    needs: Sequence[Needs],
    block_size: int | None = None,
    max_length: int | None = None,
) -> list[str]:
    """List what does not fit: another tokenizer, block size or length; a missing signal, T, pass or view.

    Some of several caches may lack a signal; their samples then have no such target. A signal that a cache has must be
    stored as the objectives read it.

    Args:
        caches: The run's caches; without one there is no fault.
        tokenizer: The student's.
        needs: What each objective needs.
        block_size: Tokens per diffusion block that the run asks for; None for the caches' own.
        max_length: Tokens of a sample that the run asks for; None for the caches' own.
    """
    faults = []
    for number, cache in enumerate(caches):
        asked = [need for need in needs if len(caches) == 1 or need.signals & cache.signals & {"topk", "chunks"}]
        of_cache = [
            *_tokenizer_faults(cache, tokenizer),
            *_size_faults(cache, caches[0], {"block_size": block_size, "max_length": max_length}),
            *_use_faults(cache),
            *_twice(cache, caches[:number]),
            *_temperature_faults(cache, union_of_needs(asked)),
            *_step_faults(cache, union_of_needs(needs)),
        ]
        faults += [cache.where + fault for fault in of_cache]
    return faults + (_signal_faults(caches, union_of_needs(needs)) if caches else [])


def _tokenizer_faults(cache: OpenedCache, tokenizer: TextTokenizer) -> list[str]:
    fingerprint, built_with = tokenizer.fingerprint(), cache.manifest.identity.student_tokenizer
    faults = [
        f"student tokenizer, {name}: cache has {found}, the student's is {expected}"
        for name, found, expected in differing(built_with, fingerprint)
    ]
    if faults:
        faults[-1] += f"; build with --student {tokenizer.name}, or train with the tokenizer of the cache"
    return faults


def _size_faults(cache: OpenedCache, first: OpenedCache, asked: dict[str, int | None]) -> list[str]:
    faults = []
    for name, wanted in asked.items():
        built, of_first = (getattr(one.manifest.identity.student, name) for one in (cache, first))
        if wanted not in (None, built):
            faults.append(f"student.{name}: found {wanted}, the cache was built for {built}; leave it out to use that")
        elif built != of_first:
            faults.append(
                f"student.{name}: cache was built for {built}, {first.key} for {of_first}; build it again with "
                f"--set student.{name}={of_first}"
            )
    return faults


def _use_faults(cache: OpenedCache) -> list[str]:
    manifest, faults = cache.manifest, []
    if cache.signal_pass not in manifest.passes:
        passes = ",".join([*manifest.passes, cache.signal_pass])
        faults.append(
            f"{cache.key}.signal_pass: found {cache.signal_pass}, cache has {list(manifest.passes)}; add it: "
            f"tide-cache build-teacher-shards RUN.toml --out {cache.root} --passes {passes}"
        )
    if cache.num_views and cache.num_views > (built := manifest.identity.views.num_views):
        faults.append(f"{cache.key}.num_views: found {cache.num_views}, cache has {built}")
    return faults


def _twice(cache: OpenedCache, before: Sequence[OpenedCache]) -> list[str]:
    same = next((other.key for other in before if other.cache_id == cache.cache_id), None)
    return (
        [f"found cache {cache.cache_id} twice, it is also {same}; name it once, with its whole weight"] if same else []
    )


def _temperature_faults(cache: OpenedCache, needs: Needs) -> list[str]:
    """List temperatures, and draws from tails, that objectives need and this cache lacks."""
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


def _step_faults(cache: OpenedCache, needs: Needs) -> list[str]:
    if "steps" not in needs.signals or cache.manifest.identity.views.source == "trajectory":
        return []
    return [
        "views.source: cache has random masks, an objective has row_weight = 'soon' or 'later', which needs the steps "
        "of a decoding; build with --set views.source=trajectory, or leave row_weight out"
    ]


def _signal_faults(caches: Sequence[OpenedCache], needs: Needs) -> list[str]:
    """List signals that objectives need and no cache has, and how to build them."""
    kinds = [cache.manifest.identity.signals.kinds for cache in caches]
    found = list(dict.fromkeys(kind for of_cache in kinds for kind in of_cache))
    served = {signal for cache in caches for signal in cache.signals}
    speaking = [cache for cache, of_cache in zip(caches, kinds, strict=True) if "topk" in of_cache] or caches
    shares_ids = any(cache.manifest.identity.pairing.shared_vocab_size for cache in speaking)
    faults = []
    if missing := needs.signals - {"tail", "steps"} - {*found, *served} - (set() if shares_ids else {"topk"}):
        every = [kind for kind in ("truth", "topk", "chunks") if kind in {*found, *missing}]
        have = "cache has" if len(caches) == 1 else "all caches together have"
        faults.append(
            f"signals: {have} {found}, objectives also need {sorted(missing)}; build with "
            f"--set 'signals.kinds={json.dumps(every)}'"
        )
    if "topk" in needs.signals and not shares_ids and "topk" not in served:
        with_projected = [*(kind for kind in found if kind != "topk"), "projected"]
        faults.append(
            "kl, reverse_kl and tidal over kl compare equal tokens, and the two tokenizers share none; use "
            "chunk_kl, calm or reverse_calm, or build with the teacher's distribution in the student's vocabulary: "
            f"--set 'signals.kinds={json.dumps(with_projected)}'"
        )
    return faults
