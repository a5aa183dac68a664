"""Text of the experiment: GSM8K and the standard library's functions as conversations that both sides can hold.

Held-out Python comes from modules that no training row was taken from. Both tokenizers are trained here: the teacher's
on GSM8K and Python, the cross student's on Python alone, so that they cut the same answers differently.
"""

import ast
import json
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tide_cache.demo.vocabularies import FIRST, SECOND, train_tokenizer
from tide_cache.errors import RunFileError
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.records import ChatRow, Message, SampleId

BLOCK_SIZE = 16
MAX_LENGTH = {"shared": 128, "cross": 160}
"""Tokens of a sample: the teacher's and the shared student's, and the cross student's, whose vocabulary is smaller."""
FINAL = "####"
"""Stands before the final number of a GSM8K answer."""
_UNCUT = 4096
_LEAST_BODY, _MOST_CHARACTERS = 40, 1000


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Material:
    """Files of the experiment: rows by part, and the folders of the tokenizers by pipeline."""

    root: Path

    def rows(self, part: str) -> Path:
        """File of `train`, `validation` or `test`; `text`: what training rows are the short ones of."""
        return self.root / f"{part}.jsonl"

    def tokenizer(self, pipeline: str) -> Path:
        """The students' tokenizer; in the shared pipeline it is the teacher's."""
        return self.root / "tokenizers" / ("second" if pipeline == "shared" else "first")


def make_material(root: Path, shared: Path, held_out: int, vocabularies: tuple[int, int]) -> Material:
    """Write all files, unless they are there.

    Args:
        root: Folder of the experiment's data.
        shared: Holds data/gsm8k_train.jsonl and data/gsm8k_test.jsonl.
        held_out: Rows of validation, and of test: half GSM8K, half Python.
        vocabularies: Ids of the teacher's tokenizer, and of the cross student's.
    """
    material = Material(root)
    if material.rows("test").exists():
        return material
    files = [shared / f"data/gsm8k_{part}.jsonl" for part in ("train", "test")]
    if missing := [str(file) for file in files if not file.exists()]:
        raise RunFileError(f"not found: {', '.join(missing)}; set TIDE_CACHE_SHARED to the folder that holds data/")
    maths, maths_held_out = (list(read_gsm8k(file)) for file in files)
    python, python_held_out = split_by_module(read_functions(Path(sysconfig.get_path("stdlib"))))
    for recipe, size, texts in ((SECOND, vocabularies[0], [*maths, *python]), (FIRST, vocabularies[1], python)):
        train_tokenizer(replace(recipe, vocab_size=size), _texts(texts), root / "tokenizers")
    _write(material.rows("text"), [*maths, *python])
    train, maths, python = (fitting(rows, material) for rows in ([*maths, *python], maths_held_out, python_held_out))
    Random(0).shuffle(train)
    half = held_out // 2
    _write(material.rows("train"), train)
    _write(material.rows("validation"), [*maths[:half], *python[:half]])
    _write(material.rows("test"), [*maths[half : 2 * half], *python[half : 2 * half]])
    return material


def read_gsm8k(file: Path) -> Iterator[Exchange]:
    """Return the problems of a file, without the notes for a calculator."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Exchange(row["question"], re.sub(r"<<.*?>>", "", row["answer"]))


def read_functions(stdlib: Path) -> dict[str, list[Exchange]]:
    """Return the short documented functions of each top-level module or package: signature and docstring, then body."""
    found: dict[str, list[Exchange]] = {}
    for file in sorted(stdlib.rglob("*.py")):
        parts = file.relative_to(stdlib).parts
        if parts[0] not in ("site-packages", "test", "dist-packages") and "test" not in parts:
            found.setdefault(parts[0].removesuffix(".py"), []).extend(_functions(file))
    return {module: exchanges for module, exchanges in found.items() if exchanges}


def _functions(file: Path) -> Iterator[Exchange]:
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        split = node.body[1].lineno - 1
        head, body = (
            "\n".join(line.removeprefix(" " * node.col_offset) for line in part)
            for part in (lines[node.lineno - 1 : split], lines[split : node.end_lineno])
        )
        if len(body) >= _LEAST_BODY and len(head) + len(body) <= _MOST_CHARACTERS:
            yield Exchange(head, body)


def split_by_module(by_module: dict[str, list[Exchange]]) -> tuple[list[Exchange], list[Exchange]]:
    """Hold out every sixth module: no training row comes from a module of the held-out ones; no text is in both."""
    modules = sorted(by_module)
    Random(0).shuffle(modules)
    train = {exchange: None for module in modules[len(modules) // 6 :] for exchange in by_module[module]}
    held_out = {exchange: None for module in modules[: len(modules) // 6] for exchange in by_module[module]}
    rest = [exchange for exchange in held_out if exchange not in train]
    Random(0).shuffle(rest)
    return list(train), rest


def fitting(exchanges: Iterable[Exchange], material: Material) -> list[Exchange]:
    """Return what neither side would have to leave out for its length."""
    chosen = list(exchanges)
    rows = [
        ChatRow(SampleId(str(i)), (Message("user", one.question), Message("assistant", one.answer)), str(i))
        for i, one in enumerate(chosen)
    ]
    for pipeline, length in MAX_LENGTH.items():
        tokenizer = TextTokenizer.load(str(material.tokenizer(pipeline)))
        paired = encode_student(rows, tokenizer, max_length=_UNCUT, block_size=BLOCK_SIZE, fill_last_block=True)
        kept = {pair.sample_id for pair in paired.pairs if len(pair.student_ids_L) <= length}
        rows = [row for row in rows if row.sample_id in kept]
    return [chosen[int(row.sample_id)] for row in rows]


def _texts(exchanges: Iterable[Exchange]) -> Iterator[str]:
    for exchange in exchanges:
        yield exchange.question
        yield exchange.answer


def _write(file: Path, exchanges: list[Exchange]) -> None:
    rows = [json.dumps({"question": one.question, "answer": one.answer}) for one in exchanges]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
