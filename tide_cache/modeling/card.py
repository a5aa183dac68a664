"""The model card of a student: what it learnt, from whom, and how to run it."""

from collections.abc import Mapping
from typing import Any

from tide_cache.families import FAMILIES


def model_card(provenance: Mapping[str, Any], architecture: str, format: str = "a2d", threshold: float = 0.9) -> str:
    """Return the README.md of a student.

    Args:
        provenance: The student's `tide_cache.json`.
        architecture: Its stock architecture, for example `qwen3`.
        format: Layout of the described model: `a2d`, `sdar` or `hf`.
        threshold: Confidence threshold in the commands shown.
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
    ]
    teachers = {cache.get("teacher", {}).get("model_type") for cache in caches}
    notes = [
        f"- The teacher, {family.name}: {family.licence}." for family in FAMILIES.values() if family.name in teachers
    ]
    notes.append(
        "- The model it started from, the teacher's output and the text that was trained on have their own terms."
    )
    parts.append("## Licences\n\n" + "\n".join(notes) + "\n")
    return "\n".join(parts)


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
