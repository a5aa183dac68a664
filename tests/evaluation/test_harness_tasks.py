"""The paper's eight tasks: what is asked, what counts as right, and where the data is looked for.

The data sets are a few rows in the hub's layout; an oracle that knows the answers stands in for the model, since no
small one does. lm-eval, its definitions, filters and metrics are the real ones.
"""

import gzip
import json
from itertools import islice

import pytest

from tide_cache.errors import EvaluationError, RunFileError
from tide_cache.evaluation.harness.local_data import Wanted, find_files, read_rows
from tide_cache.evaluation.harness.model import BlockDiffusionLM, ModelOptions
from tide_cache.evaluation.harness.programs import code_of
from tide_cache.evaluation.harness.sandbox import Sandbox
from tide_cache.evaluation.harness.scoring import ScoringOptions, score_task
from tide_cache.evaluation.harness.suite import TIDE, choose_tasks
from tide_cache.evaluation.harness.tasks import define_tasks
from tide_cache.pairing import TextTokenizer
from tide_cache.training.distributed import World

LIMITS = Sandbox("limits")
SOLUTION = "def double(x):\n    return 2 * x\n"

ROWS = {
    "mmlu_generative_dream": {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1},
    "mmlu_pro": {"question": "1 + 1?", "options": ["1", "2", "3"], "answer": "B", "category": None, "cot_content": ""},
    "hellaswag_gen": {"ctx": "A man sits.", "endings": ["flies", "stands", "swims", "rains"], "label": "1"},
    "gsm8k_cot": {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"},
    "bbh": {"input": "not True is", "target": "False"},
    "minerva_math": {"problem": "1/2 + 1/2?", "solution": "It is $\\boxed{\\frac{2}{2}}$."},
    "humaneval_instruct": {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "test": "def check(f):\n    assert f(2) == 4\n",
    },
    "mbpp_instruct": {
        "task_id": 11,
        "text": "Write a function that doubles.",
        "code": SOLUTION,
        "test_list": ["assert double(2) == 4", "assert double(0) == 0", "assert double(-1) == -2"],
    },
}
ANSWERS = {
    "mmlu_generative_dream": ("B. 2", "A"),
    "mmlu_pro": ("1 + 1 = 2, so the answer is (B).", "The answer is (A)."),
    "hellaswag_gen": ("B", "D"),
    "gsm8k_cot": ("1 + 1 = 2. The answer is 2.", "The answer is 3."),
    "bbh": ("not True = False. So the answer is False.", "So the answer is True."),
    "minerva_math": ("It is $\\boxed{1}$.", "It is $\\boxed{2}$."),
    "humaneval_instruct": ("    return 2 * x\n```\nThis doubles.", "    return x\n```"),
    "mbpp_instruct": (f"{SOLUTION}```\nThis doubles.", "def double(x):\n    return x\n```"),
}
PROMPTS = {
    "mmlu_generative_dream": "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
    "mmlu_pro": "Question:\n1 + 1?\nOptions:\nA. 1\nB. 2\nC. 3\nAnswer: Let's think step by step.",
    "hellaswag_gen": "A man sits.\nQuestion: Which ending makes the most sense?\nA. flies\nB. stands\nC. swims\n"
    "D. rains\nYou may choose from 'A', 'B', 'C', 'D'.\nAnswer:",
    "gsm8k_cot": "Q: 1 + 1?\nA:",
    "bbh": "Q: not True is\nA: Let's think step by step.",
    "minerva_math": "Problem:\n1/2 + 1/2?\n\nSolution:",
    "humaneval_instruct": '"""Twice x."""\n\n```',
    "mbpp_instruct": "assert double(2) == 4\nassert double(0) == 0\nassert double(-1) == -2",
}


class Oracle(BlockDiffusionLM):
    """Answers rightly, or wrongly, whatever it is asked, and keeps the questions."""

    answer = ""
    asked = ()

    def generate_until(self, requests, disable_tqdm=False):
        self.asked = [request.args for request in requests]
        return [self.answer] * len(requests)


@pytest.fixture(scope="module")
def hub_layout(tmp_path_factory):
    """Every data set of the suite, one row for each task of lm-eval, in the folders and files that the hub has."""
    root = tmp_path_factory.mktemp("task-data")
    for task in define_tasks(TIDE, None, LIMITS):
        for config in task.configs:
            name = config["dataset_path"].rpartition("/")[2]
            folder = root / name / (config.get("dataset_name") or "data")
            folder.mkdir(parents=True, exist_ok=True)
            split = config.get("test_split") or config["validation_split"]
            row = dict(ROWS[task.settings.name])
            if task.settings.name == "mmlu_pro":
                row["category"] = config["task"].removeprefix("mmlu_pro_").replace("_", " ")
            with (folder / f"{split}.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    return root


@pytest.fixture(scope="module")
def opened(hub_layout):
    return {task.settings.name: (task, task.open()) for task in define_tasks(TIDE, hub_layout, LIMITS)}


@pytest.fixture(scope="module")
def tokenizer(vocabularies):
    return TextTokenizer.load(str(vocabularies.second))


def score(opened, name, answer, make_backbone, tokenizer):
    task, tasks = opened[name]
    tasks = dict(islice(tasks.items(), 3))
    lm = Oracle(make_backbone(vocab=tokenizer.vocab_size), tokenizer, ModelOptions(8), task.settings, World(0, 1, 0))
    lm.answer = answer
    return score_task(lm, task, tasks, ScoringOptions(None, True, "float32")), lm.asked


@pytest.mark.parametrize("name", ROWS)
def test_right_answers_count_and_wrong_ones_do_not(opened, name, make_backbone, tokenizer):
    right, wrong = ANSWERS[name]
    result, asked = score(opened, name, right, make_backbone, tokenizer)
    assert (result["score"], result["num_questions"]) == (1.0, min(3, len(opened[name][1])))
    assert score(opened, name, wrong, make_backbone, tokenizer)[0]["score"] == 0.0
    prompt, how = asked[0]
    assert PROMPTS[name] in prompt
    assert prompt.startswith("<role>")
    assert (how["max_gen_toks"], how["steps"]) == (opened[name][0].settings.new_tokens, opened[name][0].settings.steps)
    shots = {"bbh": 3}.get(name, 0)
    assert prompt.count("Q: ") == shots + 1 if name == "bbh" else "The answer is" not in prompt


def test_how_many_tasks_of_lm_eval_each_one_is(opened):
    sizes = {name: len(tasks) for name, (_, tasks) in opened.items()}
    assert sizes == {
        **dict.fromkeys(ROWS, 1),
        "mmlu_generative_dream": 57,
        "mmlu_pro": 14,
        "bbh": 27,
        "minerva_math": 7,
    }


def test_the_published_solutions_pass(shared, make_backbone, tokenizer):
    """HumanEval as its authors published it, with their own solutions, in the sandbox."""
    (task,) = define_tasks(choose_tasks("tide", ["humaneval_instruct"]), shared / "data", LIMITS)
    single = task.open()["humaneval_instruct"]
    (metric,) = single._metric_fn_list.values()
    for doc in list(single.eval_docs)[:5]:
        ((program,),) = single._filters[0].filters[0]().filter_fn([[doc["canonical_solution"]]], [doc])
        assert metric([single.doc_to_target(doc)], [[program]]) == 1.0
        assert metric([single.doc_to_target(doc)], [[doc["prompt"] + "    return None\n"]]) == 0.0


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1\n```\nDone.", "x = 1\n"),
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("\n```\nx = 1\n```\n```\ny\n```", "x = 1\n"),
        ("def f():\n    return 1\n```", "def f():\n    return 1\n"),
    ],
)
def test_code_of_an_answer(answer, code):
    assert code_of(answer) == code


def test_code_is_not_run_without_consent():
    with pytest.raises(RunFileError, match=r"humaneval_instruct runs programs.*--allow-code-execution"):
        define_tasks(choose_tasks("tide", []), None, None)
    assert len(define_tasks(choose_tasks("tide", ["gsm8k_cot", "bbh"]), None, None)) == 2


def test_names_that_are_no_tasks(tmp_path):
    with pytest.raises(RunFileError, match=r"--suite 'tied': no such suite; expected tide"):
        choose_tasks("tied", [])
    with pytest.raises(RunFileError, match=r"--tasks arc_easy: not in the suite tide"):
        choose_tasks("tide", ["arc_easy", "bbh"])
    with pytest.raises(RunFileError, match=r"--tasks names no task"):
        choose_tasks(None, [])
    with pytest.raises(RunFileError, match=r"--tasks: found bbh more than once"):
        choose_tasks(None, ["bbh", "mine/bbh.yaml"])
    with pytest.raises(RunFileError, match=r"x\.yaml: found no such file"):
        define_tasks(choose_tasks(None, [str(tmp_path / "x.yaml")]), None, None)


def test_missing_data_names_every_place_looked_at(tmp_path):
    with pytest.raises(EvaluationError) as caught:
        define_tasks(TIDE, tmp_path, LIMITS)
    message = str(caught.value)
    assert f"cais/mmlu, test: looked for {tmp_path}/mmlu/abstract_algebra/test and 56 other configurations" in message
    assert f"openai/gsm8k, test: looked for {tmp_path}/gsm8k_test, {tmp_path}/gsm8k/main/test" in message
    assert f"Rowan/hellaswag, validation: looked for {tmp_path}/hellaswag/data/validation" in message
    assert f"hf download --repo-type dataset cais/mmlu --local-dir {tmp_path}/mmlu" in message
    assert len(message.splitlines()) == 10


def test_data_is_found_whole_in_pieces_and_under_its_authors_name(tmp_path):
    wanted = Wanted("openai/gsm8k", "main", "test")
    folder = tmp_path / "gsm8k" / "main"
    folder.mkdir(parents=True)
    pieces = [folder / f"test-0000{k}-of-00002.jsonl" for k in (0, 1)]
    for k, path in enumerate(pieces):
        path.write_text(json.dumps({"question": f"{k}\u2028"}, ensure_ascii=False) + "\n")
    (folder / "test-notes.jsonl").write_text("{}")
    assert find_files(tmp_path, [wanted]) == {wanted: tuple(pieces)}
    assert [row["question"] for row in read_rows(pieces)] == ["0\u2028", "1\u2028"]
    own = tmp_path / "gsm8k_test.jsonl.gz"
    own.write_bytes(gzip.compress(b'{"question": "q"}\n'))
    assert find_files(tmp_path, [wanted]) == {wanted: (own,)}
    assert read_rows([own]) == [{"question": "q"}]


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", b"{"), ("a.jsonl.gz", b"x"), ("a.parquet", b"x")])
def test_a_broken_data_file(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match=r"a\..*: cannot be read: .*; fetch it again"):
        read_rows([path])


def test_data_without_rows_or_with_other_columns(tmp_path):
    file = tmp_path / "gsm8k_test.jsonl"
    file.write_text("\n")
    (task,) = define_tasks(choose_tasks("tide", ["gsm8k_cot"]), tmp_path, None)
    with pytest.raises(EvaluationError, match="found no rows"):
        task.open()
    file.write_text('{"frage": "?"}\n')
    with pytest.raises(EvaluationError, match=r"gsm8k_cot: its data cannot be read: looked for openai/gsm8k main in"):
        task.open()


def test_other_data_are_other_questions(tmp_path):
    digests = set()
    for text in ('{"question": "1"}', '{"question": "2"}'):
        (tmp_path / "gsm8k_test.jsonl").write_text(text)
        (task,) = define_tasks(choose_tasks("tide", ["gsm8k_cot"]), tmp_path, None)
        digests |= {task.identity(), task.identity()}
    assert len(digests) == 2
