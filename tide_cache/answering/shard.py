"""One part of a file of answers: a pure function of the prepared run and the number of the part.

A part is JSON lines: first the counts, then the answered rows. It is published complete or not at all.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tide_cache.answering.prepare import PreparedAnswers, Prompt
from tide_cache.answering.record import part_path
from tide_cache.answering.trajectory import pieces_of
from tide_cache.building.shard import BuiltShard
from tide_cache.decoding.causal import generate_causal
from tide_cache.decoding.sampler import generate
from tide_cache.decoding.step import DecodingCounts
from tide_cache.evaluation.answers import cut
from tide_cache.modeling.backbone import Backbone
from tide_cache.shards.publish import publish

OnAnswers = Callable[[int], None]


@dataclass
class PartCounts:
    """The counts of a part; attributes as in `AnswersResult`."""

    answers: int = 0
    unfinished: int = 0
    empty: int = 0
    dropped: int = 0
    tokens: int = 0
    forwards: int = 0
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What the teacher wrote.

    Attributes:
        ids: New tokens, without a stop id.
        steps: The step at which each was kept, also for a stop id.
        is_stopped: Whether a stop id ended it.
    """

    ids: list[int]
    steps: list[int]
    is_stopped: bool


def write_part(prepared: PreparedAnswers, backbone: Backbone, shard: int, on_answers: OnAnswers) -> BuiltShard:
    """Answer the prompts of a part, and publish it.

    Args:
        prepared: The checked run.
        backbone: The teacher.
        shard: Number of the part.
        on_answers: Called with the number of answers as they are written, and with 0 in between; may raise to stop
            before anything is published.
    """
    prompts = [prompt for prompt in prepared.prompts(prepared.rows_of(shard)) if isinstance(prompt, Prompt)]
    answers: dict[int, Answer] = {}
    counts, size = DecodingCounts(), prepared.run.answers.batch_size
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids))
    for start in range(0, len(by_length), size):
        numbers = by_length[start : start + size]
        batch = [prompts[number] for number in numbers]
        answers.update(zip(numbers, _answer(prepared, backbone, batch, counts, on_answers), strict=True))
        on_answers(len(batch))
    part = PartCounts(tokens=counts.tokens, forwards=counts.forwards)
    lines = [_line(prepared, prompts[number], answers[number], part) for number in range(len(prompts))]
    rows = [line for line in lines if line is not None]
    part.answers = len(rows)
    data = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (asdict(part), *rows)).encode()
    publish(part_path(prepared.run.answers.out, shard), data)
    return BuiltShard(shard, len(data), len(rows))


def _answer(
    prepared: PreparedAnswers, backbone: Backbone, prompts: list[Prompt], counts: DecodingCounts, on_answers: OnAnswers
) -> list[Answer]:
    """Let the teacher continue some prompts."""
    tokenizer, decoding = prepared.tokenizer, prepared.run.decoding
    ids, keys = [prompt.ids for prompt in prompts], [prompt.row.sample_id for prompt in prompts]
    stop_ids = set(tokenizer.is_special_V.nonzero()[0].tolist())

    def is_complete(written: list[int]) -> bool:
        on_answers(0)
        return bool(decoding.stop) and any(stop in tokenizer.decode(written) for stop in decoding.stop)

    if prepared.run.teacher.context != "causal":
        steps: dict[int, list[int]] = {}
        written = generate(
            backbone, ids, keys=keys, mask_id=tokenizer.mask_id, pad_id=tokenizer.pad_id, stop_ids=stop_ids,
            is_complete=is_complete, counts=counts, reveal_steps=steps, **prepared.options,
        )  # fmt: skip
        return [Answer(new, steps[i], len(steps[i]) > len(new)) for i, new in enumerate(written)]
    stopped: set[int] = set()
    written = generate_causal(
        backbone, ids, keys=keys, stop_ids=stop_ids, max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p, seed=decoding.seed,
        batch_size=len(ids), is_complete=is_complete, counts=counts, stopped=stopped,
    )  # fmt: skip
    return [Answer(new, list(range(len(new) + (i in stopped))), i in stopped) for i, new in enumerate(written)]


def _line(prepared: PreparedAnswers, prompt: Prompt, answer: Answer, counts: PartCounts) -> dict[str, Any] | None:
    """Return the row with its answer; None if it is left out."""
    whole = prepared.tokenizer.decode(answer.ids)
    text = cut(whole, prepared.run.decoding.stop)
    is_finished = answer.is_stopped or len(text) < len(whole)
    counts.unfinished += not is_finished
    if not text.strip():
        counts.empty += 1
    elif not is_finished and prepared.run.answers.unfinished == "drop":
        counts.dropped += 1
    else:
        if not prepared.run.answers.trajectory:
            return prompt.row.answered(text)
        pieces = pieces_of(prepared.tokenizer, answer.ids, answer.steps, text)
        return prompt.row.answered(text, trajectory=pieces)
    counts.left_out.append(prompt.row.sample_id)
    return None
