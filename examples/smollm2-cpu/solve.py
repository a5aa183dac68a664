"""Answers of one model to GSM8K problems, and how many end with the right number.

`python solve.py RUN_FOLDER PROBLEMS` writes RUN_FOLDER/answers.json. `tide-cache generate` answers one question in the
same way.
"""

import json
import sys
from pathlib import Path

import torch

from tide_cache.evaluation import generate_text
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message

FINAL = "####"
BLOCK_SIZE = 8
OPTIONS = {"block_size": BLOCK_SIZE, "steps_per_block": BLOCK_SIZE // 2, "max_new_tokens": 128, "batch_size": 16}


def main(folder: Path, problems: Path) -> None:
    """Answer every problem and write answers and counts."""
    rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()]
    model = str(folder / "model")
    backbone, tokenizer = load_backbone(read_checkpoint(model), torch.bfloat16, "cpu"), TextTokenizer.load(model)
    asked = [[Message("user", row["question"])] for row in rows]
    answers = generate_text(backbone, tokenizer, asked, **OPTIONS)
    right = [_final(text) == _final(row["answer"]) for text, row in zip(answers, rows, strict=True)]
    shown = [
        {"question": row["question"], "true": row["answer"], "answer": text, "right": ok}
        for row, text, ok in zip(rows, answers, right, strict=True)
    ]
    content = {"problems": len(rows), "right": sum(right), "finals": sum(FINAL in a for a in answers), "answers": shown}
    (folder / "answers.json").write_text(json.dumps(content | {"options": OPTIONS}, indent=1) + "\n", encoding="utf-8")
    print(f"{folder}: {sum(right)} of {len(rows)} right, {content['finals']} with a final number")


def _final(text: str) -> str:
    """Return the number behind `####`, without commas; the text itself where there is none."""
    _, mark, number = text.partition(FINAL)
    return number.strip().replace(",", "") if mark else text


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
