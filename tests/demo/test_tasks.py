import ast
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_cache.demo.tasks import KINDS, Kind, Task, is_checkable, is_correct, make_tasks, write_tasks

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return make_tasks(4000, seed=11)


def of_kind(tasks: list[Task], kind: Kind) -> list[Task]:
    found = [task for task in tasks if task.kind == kind]
    assert len(found) > 100
    return found


@settings(max_examples=25, deadline=None)
@given(seed=seeds, num=st.integers(0, 60), extra=st.integers(0, 20))
def test_a_seed_determines_the_tasks_and_longer_lists_extend_shorter_ones(seed: int, num: int, extra: int) -> None:
    assert make_tasks(num + extra, seed)[:num] == make_tasks(num, seed)
    assert len(make_tasks(num, seed)) == num


def test_seeds_differ() -> None:
    assert make_tasks(50, seed=0) != make_tasks(50, seed=1)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_every_answer_is_correct(seed: int) -> None:
    assert all(is_correct(task, task.answer) for task in make_tasks(60, seed))


def test_half_of_the_tasks_are_stories_and_the_rest_is_shared_evenly(tasks: list[Task]) -> None:
    shares = {kind: num / len(tasks) for kind, num in Counter(task.kind for task in tasks).items()}
    assert shares == pytest.approx({kind: 0.5 if kind == "story" else 0.1 for kind in KINDS}, abs=0.03)


def test_only_stories_have_several_right_answers(tasks: list[Task]) -> None:
    answers = defaultdict(set)
    for task in tasks:
        answers[task.kind, task.question].add(task.answer)
    has_several = {kind: any(len(a) > 1 for (k, _), a in answers.items() if k == kind) for kind in KINDS}
    assert has_several == {kind: not is_checkable(kind) for kind in KINDS}


def test_texts_are_printable_ascii(tasks: list[Task]) -> None:
    text = "".join(task.question + task.answer for task in tasks).replace("\n", "")
    assert text.isascii()
    assert text.isprintable()


def test_answers_follow_from_the_questions(tasks: list[Task]) -> None:
    for task in of_kind(tasks, "copy"):
        assert task.question == f"copy: {task.answer}"
    for task in of_kind(tasks, "reverse"):
        assert task.question.removeprefix("reverse: ").split() == task.answer.split()[::-1]
    for task in of_kind(tasks, "sort"):
        assert sorted(task.question.removeprefix("sort: ").split()) == task.answer.split()
    for task in of_kind(tasks, "add"):
        left, right = (int(number) for number in task.question.removeprefix("add: ").split(" and "))
        assert task.answer == f"{left} + {right} = {left + right}"


def expected_value(request: str, number: int, value: int) -> object:
    return {
        "add": value + number,
        "cut": value - number,
        "scale": value * number,
        "is": value > number,
        "cap": min(value, number),
        "get": 3 * number,
    }[request]


def test_code_does_what_was_asked(tasks: list[Task]) -> None:
    """Each answer is run: it defines the function asked for, and the function computes what the request says."""
    for task in of_kind(tasks, "code"):
        head, request = task.question.removeprefix("code ").split(": ")
        (number,) = (int(word) for word in request.split() if word.isdigit())
        namespace: dict[str, object] = {}
        exec(compile(ast.parse(task.answer), "answer", "exec"), namespace)
        function = namespace[head]
        assert callable(function)
        verb = request.split()[0]
        for value in (1, 7, 60):
            argument = list(range(0, 303, 3)) if verb == "get" else value
            assert function(argument) == expected_value(verb, number, value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_checkable(kind)])
def test_any_other_text_is_wrong_where_the_answer_is_determined(tasks: list[Task], kind: Kind) -> None:
    task, other = of_kind(tasks, kind)[:2]
    assert task.answer != other.answer
    for text in ("", other.answer, task.question, task.answer + " ", " " + task.answer, task.answer[:-1]):
        assert not is_correct(task, text)


def test_a_story_may_be_told_differently(tasks: list[Task]) -> None:
    """Stories of the same person at the same place answer each other's question."""
    by_question = defaultdict(list)
    for task in of_kind(tasks, "story"):
        by_question[task.question].append(task)
    for told in by_question.values():
        assert all(is_correct(told[0], other.answer) for other in told)
    assert max(len({task.answer for task in told}) for told in by_question.values()) > 5


def test_a_broken_story_is_wrong(tasks: list[Task]) -> None:
    for task in of_kind(tasks, "story")[:20]:
        name = task.answer.split()[0]
        stranger = "jon" if name != "jon" else "kit"
        for text in (
            "",
            task.question,
            task.answer[:-1],
            task.answer + " ",
            task.answer.upper(),
            task.answer.replace(name, stranger),
            task.answer.replace(name, stranger, 1),
            task.answer.replace(" a ", " an "),
        ):
            assert not is_correct(task, text)


@pytest.mark.parametrize("word", range(11))
def test_every_slot_of_a_story_is_checked_against_what_it_depends_on(tasks: list[Task], word: int) -> None:
    """Changing one word to others seen there is right for some and wrong for others; fixed words admit none."""
    stories = [task.answer.split() for task in of_kind(tasks, "story")]
    fillers = {story[word] for story in stories}
    verdicts = Counter()
    for task in of_kind(tasks, "story")[:50]:
        words = task.answer.split()
        for filler in fillers - {words[word]}:
            verdicts[is_correct(task, " ".join([*words[:word], filler, *words[word + 1 :]]))] += 1
    if word in {1, 3, 4, 6, 8, 10}:
        assert verdicts[True] > 50
        assert verdicts[False] > 50
    else:
        assert verdicts[True] == 0


def test_the_animal_depends_on_the_place(tasks: list[Task]) -> None:
    """Each place has six animals with odds six to one, and no two places have the same six."""
    animals = defaultdict(Counter)
    for task in make_tasks(8000, seed=3):
        if task.kind == "story":
            animals[task.question.split(", ")[1]][task.answer.split()[4].rstrip(".")] += 1
    assert len(animals) == 8
    assert {len(counts) for counts in animals.values()} == {6}
    assert len({frozenset(counts) for counts in animals.values()}) == 8
    for counts in animals.values():
        ranked = [num / counts.total() for _, num in counts.most_common()]
        assert ranked == pytest.approx([rank / 21 for rank in range(6, 0, -1)], abs=0.06)


def test_a_story_question_that_was_not_generated_is_an_error(tasks: list[Task]) -> None:
    story = of_kind(tasks, "story")[0]
    with pytest.raises(AssertionError, match="not a story question: 'tell me'"):
        is_correct(replace(story, question="tell me"), story.answer)


def test_written_tasks_read_back(tmp_path: Path, tasks: list[Task]) -> None:
    path = tmp_path / "tasks.jsonl"
    write_tasks(path, tasks[:200])
    rows = [json.loads(line) for line in path.read_bytes().decode("ascii").split("\n")[:-1]]
    assert [Task(**row) for row in rows] == tasks[:200]
    assert {tuple(sorted(row)) for row in rows} == {("answer", "kind", "question")}
