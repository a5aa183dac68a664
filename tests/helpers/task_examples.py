"""Two tasks of lm-eval over a few questions: `choices`, of likelihoods, and `answers`, to be generated."""

import json
from pathlib import Path

_TASK = """
task: {name}
{source}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
_KINDS = {
    "choices": ("multiple_choice", 'doc_to_choice: [" red", " two three", " blue and green"]'),
    "answers": (
        "generate_until",
        "generation_kwargs: {until: [], max_gen_toks: 12}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    ),
}


def write_tasks(folder: Path, source: str, data: Path) -> list[Path]:
    """Write both tasks into a folder, and their five questions; return the tasks' files.

    Args:
        folder: Where `choices.yaml` and `answers.yaml` go.
        source: Lines of a task that say where its questions are.
        data: File of the questions.
    """
    words = ("a", "b c", "d", "e f", "g")
    data.parent.mkdir(exist_ok=True)
    data.write_text("\n".join(json.dumps({"question": f"reverse: {w}", "answer": k % 3}) for k, w in enumerate(words)))
    for name, (output_type, more) in _KINDS.items():
        text = _TASK.format(name=name, source=source, output_type=output_type, more=more)
        (folder / f"{name}.yaml").write_text(text)
    return [folder / f"{name}.yaml" for name in _KINDS]
