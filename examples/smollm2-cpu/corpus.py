"""Text and tokenizer of the example: GSM8K and the standard library's functions, and a tokenizer trained on both.

`python examples/smollm2-cpu/corpus.py OUT` writes, under OUT:

- `teacher.jsonl`: what the teacher learns to denoise;
- `start.jsonl`: the part of it that students learn denoising from before a teacher is asked;
- `distil.jsonl`: the rows that are captured and distilled, none of them in `start.jsonl`;
- `validation.jsonl`, `test.jsonl`: half GSM8K test problems, half functions of modules that no other file has rows of;
- `problems.jsonl`: further GSM8K test problems, for exact match;
- `tokenizer-16k`: byte-level BPE with 16,384 ids. It differs from the teacher's in size, merges, digits and template.
"""

import json
import os
import random
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.material import Exchange, read_functions, read_gsm8k, split_by_module  # noqa: E402
from tide_cache.demo.vocabularies import SECOND, train_tokenizer  # noqa: E402

SHARED = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))
NUM_IDS = 16_384
MOST_TOKENS = 112
"""Of question and answer in the teacher's tokens. With its template's 35, nearly all of them fit into 160."""
NUM_START, NUM_DISTIL, NUM_HELD_OUT, NUM_PROBLEMS = 3_200, 640, 96, 64


def main(out: Path, teacher_tokenizer: Path) -> None:
    """Write all files; the test file is the last, so that a cut is noticed."""
    if (out / "test.jsonl").exists():
        return
    maths, maths_test = (list(read_gsm8k(SHARED / f"data/gsm8k_{part}.jsonl")) for part in ("train", "test"))
    python, python_test = split_by_module(read_functions(Path(sysconfig.get_path("stdlib"))))
    texts = (text for exchange in [*maths, *python] for text in (exchange.question, exchange.answer))
    made = train_tokenizer(replace(SECOND, name="tokenizer-16k", vocab_size=NUM_IDS), texts, out)
    print(f"{made}: {NUM_IDS:,} ids")
    counter = Tokenizer.from_file(str(teacher_tokenizer / "tokenizer.json"))
    train = _short([*maths, *python], counter)
    random.Random(0).shuffle(train)
    _write(out / "teacher.jsonl", train)
    _write(out / "start.jsonl", train[:NUM_START])
    _write(out / "distil.jsonl", train[NUM_START : NUM_START + NUM_DISTIL])
    maths_test, python_test = _short(maths_test, counter), _short(python_test, counter)
    half = NUM_HELD_OUT // 2
    _write(out / "problems.jsonl", maths_test[2 * half : 2 * half + NUM_PROBLEMS])
    _write(out / "validation.jsonl", [*maths_test[:half], *python_test[:half]])
    _write(out / "test.jsonl", [*maths_test[half : 2 * half], *python_test[half : 2 * half]])


def _short(exchanges: Iterable[Exchange], counter: Tokenizer) -> list[Exchange]:
    chosen = list(exchanges)
    encoded = counter.encode_batch([one.question + one.answer for one in chosen])
    return [one for one, tokens in zip(chosen, encoded, strict=True) if len(tokens.ids) <= MOST_TOKENS]


def _write(file: Path, exchanges: list[Exchange]) -> None:
    rows = [json.dumps({"question": one.question, "answer": one.answer}) for one in exchanges]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{file}: {len(rows):,} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
