"""Imports run down: a folder uses what stands below it and nothing above."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FLOORS = """
arrays aside child version errors progress launchers wording families lm_eval_hook
records
unreadable interruption signal_table
locations
hub disk config
upload
objectives views places
corpus pairing shards
manifest modeling
teacher student decoding
loading building
training
evaluation
answering inspecting
sweep
demo reporting
api
tide_cache
cli
experiments benchmarks
"""
"""From the ground up; places of one line do not use each other."""

FLOOR_OF = {place: floor for floor, line in enumerate(FLOORS.split("\n")) for place in line.split()}


def place_of(module: str) -> str:
    """The folder or file of the tree that a module belongs to: `shards` of `tide_cache.shards.reader`."""
    first, *rest = module.split(".")
    if first == "tide_cache":
        return rest[0] if rest else "tide_cache"
    return {"tide_cache_cli": "cli"}.get(first, first)


def imported(path: Path) -> Iterator[str]:
    """The modules of this tree that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module="tide_cache", names=names):
                files = {path.stem for path in (ROOT / "tide_cache").iterdir()} - {"__init__"}
                yield from (f"tide_cache.{name.name}" if name.name in files else "tide_cache" for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module


FILES = [
    path for folder in ("tide_cache", "cli", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")
]
ARROWS = {
    (place_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")), place_of(module)): path
    for path in FILES
    for module in imported(path)
    if module.split(".")[0] in ("tide_cache", "tide_cache_cli", "experiments", "benchmarks")
}


def test_every_place_has_a_floor():
    assert {place for arrow in ARROWS for place in arrow} <= FLOOR_OF.keys()
    assert len(ARROWS) > 100


def test_no_import_runs_up():
    assert {a: path.name for a, path in ARROWS.items() if a[0] != a[1] and FLOOR_OF[a[0]] <= FLOOR_OF[a[1]]} == {}
