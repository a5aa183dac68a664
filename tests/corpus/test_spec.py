"""The mix syntax: writing a part and parsing it are inverse, and every fault is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.corpus.spec import Part, parse_spec
from tide_cache.errors import RunFileError

NOWHERE = Path("/nonexistent")

names = st.from_regex(r"[a-z][a-z0-9_./-]{0,12}", fullmatch=True)
words = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)
languages = st.sampled_from(["python", "c++", "c#", "JavaScript"])


@st.composite
def parts(draw: st.DrawFn) -> Part:
    split = draw(st.none() | words.filter(lambda word: word not in ("name", "lang")))
    limit = draw(st.none() | st.integers(1, 10**9)) if split else None
    return Part(draw(names), split, limit, draw(st.none() | words), draw(st.none() | languages))


def written(part: Part, order: list[int]) -> str:
    items = [
        f"name:{part.config}" if part.config else "",
        f"{part.split}:{part.limit or ''}" if part.split else "",
        f"lang:{part.language}" if part.language else "",
    ]
    chosen = [items[i] for i in order if items[i]]
    return f"{part.name}[{','.join(chosen)}]" if chosen else part.name


@given(mix=st.lists(st.tuples(parts(), st.permutations([0, 1, 2])), min_size=1, max_size=4))
def test_a_written_mix_parses_to_its_parts(mix: list[tuple[Part, list[int]]]) -> None:
    spec = "+".join(written(part, order) for part, order in mix)
    assert parse_spec(spec, NOWHERE) == tuple(part for part, _ in mix)


def test_the_mix_of_the_scripts_parses() -> None:
    spec = "a.jsonl + b.parquet[train:5000] +org/name[name:python, lang:python, train:1000]"
    assert parse_spec(spec, NOWHERE) == (
        Part("a.jsonl"),
        Part("b.parquet", split="train", limit=5000),
        Part("org/name", split="train", limit=1000, config="python", language="python"),
    )


def test_a_plus_in_a_path_counts_only_where_the_whole_exists(tmp_path: Path) -> None:
    assert [part.name for part in parse_spec("a+b.jsonl[train:3]", tmp_path)] == ["a", "b.jsonl"]
    (tmp_path / "a+b.jsonl").touch()
    assert parse_spec("a+b.jsonl[train:3]", tmp_path) == (Part("a+b.jsonl", split="train", limit=3),)


@pytest.mark.parametrize("spec", ["", "  "])
def test_an_empty_spec_is_refused(spec: str) -> None:
    with pytest.raises(RunFileError, match=r"corpus\.spec is empty; give a file, a folder or a hub name"):
        parse_spec(spec, NOWHERE)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.jsonl+", r"piece 2 is empty"),
        ("+a.jsonl", r"piece 1 is empty"),
        ("[train:5]", r"piece 1 is empty; expected a file"),
        ("a.jsonl[train:5", r"piece 1, 'a\.jsonl\[train:5': unbalanced bracket; expected name or name\[selection\]"),
        ("a.jsonl]", r"unbalanced bracket"),
        ("a+b[train:5]]", r"piece 2, 'b\[train:5\]\]': unbalanced bracket"),
        ("a[train:5][test:5]", r"unbalanced bracket"),
        ("a[train:5]x", r"unbalanced bracket"),
        ("a[train:0]", r"found 0 in 'train:0'; expected at least 1 row"),
        ("a[train:-3]", r"found -3 in 'train:-3'; expected at least 1 row"),
        ("a[train:many]", r"found 'many' in 'train:many'; expected a whole number of rows"),
        ("a[train:1.5]", r"found '1\.5' in 'train:1\.5'; expected a whole number of rows"),
        ("a[train]", r"found 'train'; expected key:value, for example train:5000, or train: for a split"),
        ("a[]", r"found ''; expected key:value"),
        ("a[lagn:python]", r"unknown key 'lagn' in 'lagn:python'"),
        ("a[tr ain:5]", r"unknown key 'tr ain'"),
        ("a[lang:]", r"lang: has no value"),
        ("a[train:5,test:5]", r"'test:5' is a second split; give one, or name the file twice"),
        ("a[lang:c,lang:go]", r"'lang:go' is a second lang"),
    ],
)
def test_a_fault_is_named(spec: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message) as caught:
        parse_spec(spec, NOWHERE)
    assert "Known in brackets: <split>:<N> (the first N rows), <split>: (all of it), name:<hub" in str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(RunFileError) as caught:
        parse_spec("a[train:0]++b[lagn:x,train:y]", NOWHERE)
    assert str(caught.value).count("\n  - ") == 4
