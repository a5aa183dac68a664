"""Cards: of a student, what it learnt, from whom, and how to run it; of a cache, who answered what."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tide_cache.families import FAMILIES


def model_card(
    provenance: Mapping[str, Any],
    architecture: str,
    format: str = "a2d",
    threshold: float = 0.9,
    measured: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the README.md of a student.

    Args:
        provenance: The student's `tide_cache.json`.
        architecture: Its stock architecture, for example `qwen3`.
        format: Layout of the described model: `a2d`, `sdar` or `hf`.
        threshold: Confidence threshold in the commands shown.
        measured: What `tide-cache eval` or a sweep wrote of it, each as its JSON says it.
    """
    identity = provenance.get("cache_identity") or {}
    caches = [identity] if identity else [c["identity"] for c in provenance.get("data", {}).get("caches", ())]
    block_size = provenance.get("block_size", "?")
    head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- diffusion\n- tide-cache\n---\n"
    facts = [
        ("Architecture", f"{architecture}, block diffusion with blocks of {block_size} tokens"),
        ("Started from", provenance.get("started_from", "not recorded")),
        ("Data", _data(provenance.get("data", {}))),
        *(("Teacher", _teacher(cache.get("teacher", {}))) for cache in caches),
        ("Objectives", _objectives(provenance.get("objective", ()))),
        ("Training", _training(provenance)),
        ("Written by", f"tide-cache {provenance.get('tide_cache_version', '')}".strip()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts if value)
    parts = [
        head,
        "# A block-diffusion language model\n",
        f"| | |\n|---|---|\n{table}\n",
        _use(format, block_size, threshold),
        *([_figures(measured)] if measured else []),
    ]
    others = "The model it started from, the teacher's output and the text that was trained on have their own terms."
    parts.append(_licences([cache.get("teacher", {}) for cache in caches], others))
    return "\n".join(parts)


def cache_card(
    identity: Mapping[str, Any], totals: Mapping[Any, Mapping[str, float]], cache_id: str, name: str, version: str
) -> str:
    """Return a README.md for a cache that is published as a data set.

    Args:
        identity: What it was made from.
        totals: Statistics of each table.
        cache_id: Of its identity.
        name: Of the data set, owner/name.
        version: Release that finished the build.
    """
    student, views = identity["student_tokenizer"], identity["views"]
    passes = [table for table in totals if table != "pairs"]
    facts = [
        ("Cache", f"`{cache_id}`, format {identity['format_version']}"),
        ("Teacher", _teacher(identity["teacher"])),
        ("Student tokenizer", f"sha256 `{str(student.get('tokenizer', ''))[:16]}…`"),
        ("Corpus", f"{identity['num_rows']:,} rows, hash `{identity['corpus_hash'][:16]}…`"),
        ("Samples", f"{totals['pairs'].get('samples', 0):,}, {views['num_views']} masked views each"),
        ("Signals", f"{', '.join(identity['signals']['kinds'])}; passes {', '.join(passes)}"),
        ("Written by", f"tide-cache {version}"),
    ]
    table = "\n".join(f"| {fact} | {value} |" for fact, value in facts)
    location = f"hf://datasets/{name}"
    return f"""---
viewer: false
tags:
- diffusion
- tide-cache
---

# What a teacher says about masked text

Targets for training diffusion language models, and the token ids of the text that they belong to.

| | |
|---|---|
{table}

## Use

```sh
tide-cache inspect {location}
tide-cache train --student STUDENT --cache {location} --objective ce --objective kl --out runs/student
```

{_licences([identity["teacher"]], "The teacher's output and the text have their own terms.")}"""


def _licences(teachers: Iterable[Mapping[str, Any]], others: str) -> str:
    kinds = {teacher.get("model_type") for teacher in teachers}
    notes = [f"- The teacher, {family.name}: {family.licence}." for family in FAMILIES.values() if family.name in kinds]
    return "## Licences\n\n" + "\n".join([*notes, f"- {others}"]) + "\n"


def _figures(measured: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| text | bits per byte | NLL, nats a token | token accuracy | command |", "|---|---|---|---|---|"]
    for one in measured:
        nll = one["nll"]
        text = PurePath(one.get("dataset") or one["corpus"]["spec"]).name
        bits = "" if nll["nats_per_byte"] is None else f"{nll['nats_per_byte'] / math.log(2):.4f}"
        rest = "" if nll["mean_nll"] is None else f"{nll['mean_nll']:.4f} | {nll['mean_accuracy']:.1%}"
        command = f"tide-cache eval FOLDER --dataset {shlex.quote(text)} --max-length {one['max_length']}"
        lines.append(f"| {text} | {bits} | {rest or ' | '} | `{command}` |")
    return "## Measured\n\nText that was held back, masked at ten diffusion times.\n\n" + "\n".join(lines) + "\n"


def _data(data: Mapping[str, Any]) -> str:
    match data.get("kind"):
        case "cache":
            return f"teacher cache `{data['id']}`"
        case "mix":
            return "teacher caches " + ", ".join(
                f"`{cache.get('id', cache.get('cache', ''))}`" for cache in data["caches"]
            )
        case "corpus":
            return f"a corpus without a teacher, `{data['id']}`"
    return ""


def _teacher(teacher: Mapping[str, Any]) -> str:
    revision = f", commit `{teacher['revision']}`" if teacher.get("revision") else ""
    kind, context = teacher.get("model_type", "unknown"), teacher.get("context", "unknown")
    if topk := teacher.get("topk_sha256"):
        return f"{teacher['name']} ({kind}{revision}), top-k by {teacher['engine']}, sha256 `{str(topk)[:16]}…`"
    weights = str(teacher.get("weights_sha256", ""))[:16]
    return f"{kind}{revision}, weights sha256 `{weights}…`, {context} context"


def _objectives(entries: Any) -> str:
    return " + ".join(
        f"{entry.get('weight', 1.0):g} × {entry['kind']}"
        + (f" (T = {entry['temperature']:g})" if "temperature" in entry else "")
        for entry in entries
    )


def _training(provenance: Mapping[str, Any]) -> str:
    if "steps" not in provenance:
        return ""
    batch, seed = provenance.get("global_batch"), provenance.get("seed")
    return f"{provenance['steps']:,} steps of {batch} samples, seed {seed}"


def _use(format: str, block_size: Any, threshold: float) -> str:
    own = f"tide-cache generate FOLDER --prompt 'Hello' --threshold {threshold:g}"
    if format == "sdar":
        return f"""## Use

```sh
python -m sglang.launch_server --model-path FOLDER --trust-remote-code \\
  --dllm-algorithm LowConfidence --dllm-algorithm-config dllm.yaml
lmdeploy serve api_server FOLDER --dllm-block-length {block_size} --dllm-confidence-threshold {threshold:g}
{own}
```

`dllm.yaml` holds `block_size: {block_size}` and `threshold: {threshold:g}`. vLLM loads the type `sdar` as an
autoregressive Qwen3 and answers wrongly.
"""
    warning = (
        "Other libraries load these weights as an autoregressive model, which this is not.\n" if format == "hf" else ""
    )
    return f"## Use\n\n```sh\n{own}\n```\n{warning}"
