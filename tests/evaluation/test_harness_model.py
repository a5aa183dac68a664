"""Our model class as lm-eval calls it: prompts, stop strings, budgets and likelihoods."""

import json

import pytest
from lm_eval.api.instance import Instance

from tide_cache.decoding.step import DecodingCounts
from tide_cache.evaluation import generate
from tide_cache.evaluation.answers import cut
from tide_cache.evaluation.harness.likelihood import Continuation, continuation_logprobs
from tide_cache.evaluation.harness.model import EMPTY_THINK, BlockDiffusionLM, ModelOptions, stop_strings
from tide_cache.evaluation.harness.scoring import ScoringOptions, score_task
from tide_cache.evaluation.harness.suite import TaskSettings, choose_tasks
from tide_cache.evaluation.harness.tasks import define_tasks
from tide_cache.pairing import TextTokenizer
from tide_cache.training.distributed import World

BLOCK = 8
SETTINGS = TaskSettings("test", 12, 12, batch_size=2)


@pytest.fixture(scope="module")
def tokenizer(vocabularies):
    return TextTokenizer.load(str(vocabularies.second))


@pytest.fixture
def make_lm(make_backbone, tokenizer):
    def make(settings=SETTINGS, **options):
        backbone = make_backbone(vocab=tokenizer.vocab_size)
        return BlockDiffusionLM(backbone, tokenizer, ModelOptions(BLOCK, **options), settings, World(0, 1, 0))

    return make


def ask(*arguments, kind="generate_until"):
    return Instance(kind, {}, arguments, 0)


def greedy(lm, prompt, new_tokens):
    """What the sampler writes with one token a step."""
    return generate(
        lm.backbone, [lm.tok_encode(prompt)], mask_id=lm.tokenizer.mask_id, pad_id=lm.tokenizer.pad_id, stop_ids=(),
        block_size=BLOCK, max_new_tokens=new_tokens, steps_per_block=BLOCK,
    )[0]  # fmt: skip


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches(make_lm):
    lm = make_lm()
    prompts = ["one two three", "a", "reverse: one", "b c"]
    requests = [ask(prompt, {"max_gen_toks": 5 + k % 2, "until": []}) for k, prompt in enumerate(prompts)]
    assert lm.generate_until(requests) == [lm.generate_until([request])[0] for request in requests]
    assert len(set(lm.generate_until(requests))) > 1


def test_an_answer_ends_before_the_first_stop_string(make_lm):
    lm = make_lm()
    whole = lm.generate_until([ask("one two", {"max_gen_toks": 12, "until": []})])[0]
    assert len(whole) > 8
    stops = [whole[5:7], whole[3:5]]
    assert lm.generate_until([ask("one two", {"max_gen_toks": 12, "until": stops})])[0] == cut(whole, stops)
    assert len(cut(whole, stops)) <= 3


def test_decoding_ends_with_the_block_that_holds_a_stop_string(make_lm):
    """What stands behind it costs no forward, in a batch with an answer that goes on."""
    lm, alone = make_lm(), make_lm()
    whole = lm.generate_until([ask("one two", {"max_gen_toks": 24, "until": []})])[0]
    lm.counts = DecodingCounts()
    how = {"max_gen_toks": 24, "until": whole[1:3]}
    assert lm.generate_until([ask("one two", how)]) == [whole[:1]]
    assert lm.counts.forwards <= 2 * BLOCK < 24
    answers = lm.generate_until([ask("one two", how), ask("b c", how)])
    assert answers == [whole[:1], alone.generate_until([ask("b c", how)])[0]]


def test_a_task_that_draws_gets_other_answers_to_a_repeated_question_and_the_same_ones_again(make_lm):
    how = {"max_gen_toks": 12, "until": [], "do_sample": True, "temperature": 1.0}
    requests = [ask("one two", how)] * 4
    answers = make_lm().generate_until(requests)
    assert len(set(answers)) == 4
    assert make_lm().generate_until(requests) == answers
    assert make_lm(seed=1).generate_until(requests) != answers


@pytest.mark.parametrize(
    ("stops", "expected"),
    [(None, "a b c"), ([], "a b c"), (["c", "b"], "a "), ("b", "a "), (["", "x"], "a b c"), (["a"], ""), ("", "a b c")],
)
def test_stop_strings(stops, expected):
    assert cut("a b c", stop_strings(stops)) == expected


@pytest.mark.parametrize(
    ("steps", "new_tokens", "expected"), [(256, 256, 32), (3, 3, 32), (128, 256, 16), (64, 256, 8), (1, 256, 1)]
)
def test_the_protocol_s_steps_are_kept_as_a_ratio(steps, new_tokens, expected):
    assert TaskSettings("t", new_tokens, steps).steps_per_block(32, new_tokens) == expected


def test_a_prompt_above_the_model_s_limit_loses_its_beginning_and_is_counted(make_lm):
    lm = make_lm()
    long = "one two three " * 40
    assert len(lm.tok_encode(long)) > 48
    assert lm.generate_until([ask(long, {"max_gen_toks": 4}), ask("a", {"max_gen_toks": 4})])
    assert lm.num_cut == 1


THINKING = (
    "{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<role>assistant</role>"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.parametrize(("think", "is_there"), [("template", True), ("empty", True), ("none", False)])
def test_think_prefix_of_a_template_that_writes_one(make_lm, tokenizer, tmp_path, think, is_there):
    file = tmp_path / "template.jinja"
    file.write_text(THINKING)
    lm = make_lm(think_prefix=think)
    lm.tokenizer = TextTokenizer.load(tokenizer.name, chat_template=file)
    prompt = lm.apply_chat_template([{"role": "user", "content": "hello"}])
    assert prompt == "<role>user</role>hello<|endoftext|><role>assistant</role>" + EMPTY_THINK * is_there


@pytest.mark.parametrize(("think", "is_there"), [("template", False), ("empty", True), ("none", False)])
def test_think_prefix_of_a_template_that_writes_none_and_a_begun_answer(make_lm, think, is_there):
    lm = make_lm(think_prefix=think)
    question = {"role": "user", "content": "hello"}
    prompt = lm.apply_chat_template([question])
    assert prompt.endswith(EMPTY_THINK) == is_there
    begun = "\n```python\n"
    assistant = {"role": "assistant", "content": begun}
    assert lm.apply_chat_template([question, assistant], add_generation_prompt=False) == prompt + begun


def test_a_likelihood_is_of_the_tokens_behind_the_context(make_lm):
    lm = make_lm(num_samples=4)
    context, continuation = "reverse: one two", " three"
    whole, before = lm.tok_encode(context + continuation), lm.tok_encode(context)
    expected = continuation_logprobs(
        lm.backbone, [Continuation(before, whole[len(before) :])], mask_id=lm.tokenizer.mask_id, block_size=BLOCK,
        num_samples=4, seed=0,
    )  # fmt: skip
    ((logprob, is_greedy),) = lm.loglikelihood([ask(context, continuation, kind="loglikelihood")], disable_tqdm=True)
    assert logprob == pytest.approx(expected[0], abs=1e-5)
    assert is_greedy is False


def test_what_the_sampler_writes_is_greedy(make_lm):
    lm = make_lm()
    ids = greedy(lm, "one two", 6)
    prompt = lm.tok_encode("one two")
    other = [ids[0], (ids[1] + 1) % 500]
    texts = [(None, prompt, ids), (None, prompt, ids[:2]), (None, prompt, other), (None, prompt, [])]
    assert [flag for _, flag in lm._loglikelihood_tokens(texts)] == [True, True, False, True]


def test_a_text_longer_than_the_model_is_scored_in_windows(make_lm):
    lm = make_lm(num_samples=1)
    short, long = "one", "one two three " * 20
    values = lm.loglikelihood_rolling([ask(short), ask(long)])
    assert all(value < 0 for value in values)
    assert values[1] < values[0]


CHOICES = """
task: letters
dataset_path: letters
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [" one", " two three"]
doc_to_target: "{{answer}}"
"""


def test_a_task_by_likelihood_takes_the_likelier_choice(make_lm, tmp_path):
    (tmp_path / "letters.yaml").write_text(CHOICES)
    (tmp_path / "letters").mkdir()
    lm = make_lm(choose_tasks(None, [str(tmp_path / "letters.yaml")])[0])
    texts = ["a", "b c", "reverse: one", "one two"]
    requests = [ask(text, choice, kind="loglikelihood") for text in texts for choice in (" one", " two three")]
    values = [logprob for logprob, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    best = [int(values[k + 1] > values[k]) for k in range(0, len(values), 2)]
    answers = [best[0], best[1], best[2], 1 - best[3]]
    rows = [{"question": text, "answer": answer} for text, answer in zip(texts, answers, strict=True)]
    (tmp_path / "letters" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (task,) = define_tasks([lm._settings], tmp_path, None)
    result = score_task(lm, task, task.open(), ScoringOptions(None, False, "float32"))
    assert (result["metric"], result["score"], result["num_questions"]) == ("acc,none", 0.75, 4)


def test_a_budget_by_another_name_and_a_temperature_alone_are_heard(make_lm):
    short = {"max_new_tokens": 3, "until": []}
    assert make_lm().generate_until([ask("one two", short)]) == make_lm().generate_until(
        [ask("one two", {"max_gen_toks": 3, "until": []})]
    )
    drawn = {"max_gen_toks": 12, "until": [], "temperature": 1.0}
    assert len(set(make_lm().generate_until([ask("one two", drawn)] * 4))) == 4
