"""From a row's trajectory to the step of each teacher token: the answer is found where the template wrote it.

Shape suffixes: M tokens of a text, P pieces of a trajectory.
"""

import json
from collections.abc import Sequence

import numpy as np

from tide_cache.pairing.alignment import tokens_within
from tide_cache.pairing.rendered import Rendered
from tide_cache.pairing.streams import TokenStream
from tide_cache.pairing.tokenizer import TextTokenizer
from tide_cache.records import ChatRow, Int32s
from tide_cache.views.trajectory import NOT_REVEALED


def token_steps(rows: Sequence[ChatRow], teacher: TextTokenizer) -> list[Int32s | str]:
    """Return the step at which each teacher token of each row is revealed, [M]; -1 before the answer.

    What the template writes after the answer is revealed with the end of the turn, or at the last step.

    Args:
        rows: With trajectories.
        teacher: The teacher's tokenizer.

    Returns:
        In place of a row whose trajectory does not fit its answer, what is wrong; also where it cannot be rendered.
    """
    rendered = teacher.try_render(rows)
    usable = [text for text in rendered if isinstance(text, Rendered)]
    stream, number = TokenStream(usable, teacher), 0
    found: list[Int32s | str] = []
    for row, text in zip(rows, rendered, strict=True):
        if not isinstance(text, Rendered):
            found.append(f"{row.origin}: {text}")
            continue
        steps = _steps(row, stream, number)
        found.append(f"{row.origin}: {steps}" if isinstance(steps, str) else steps)
        number += 1
    return found


def _steps(row: ChatRow, stream: TokenStream, text: int) -> Int32s | str:
    last = len(row.messages) - 1
    learnt = [k for k, m in enumerate(row.messages) if m.role == "assistant" and m.is_learnt]
    if learnt != [last]:
        return (
            "a trajectory is of the last answer, and other answers of the row are learned too, or that one is not; "
            "give those weight 0"
        )
    chars = stream.rendered[text].contents[last]
    if chars is None:
        return "the chat template writes its answer apart, so that no trajectory can be put there"
    content, shown = row.messages[last].content, stream.rendered[text].text[slice(*chars)]
    if shown not in content:
        return "the chat template changes the text of its answer, so that no trajectory can be put there"
    start, stop = stream.byte_range(text, chars)
    offset = len(content[: content.find(shown)].encode())
    first_token, stop_token = int(stream.token_offsets[text]), int(stream.token_offsets[text + 1])
    ends_M = stream.ends_N[first_token:stop_token]
    starts_M = np.concatenate([[stream.byte_offsets[text]], ends_M[:-1]])
    trajectory = json.loads(row.trajectory)
    step_M = np.full(len(ends_M), NOT_REVEALED, np.int32)
    if isinstance(trajectory[0], int):
        (first,), (end,) = (
            place_1 - first_token for place_1 in tokens_within(stream.ends_N, np.array([[start, stop]]))
        )
        if len(trajectory) not in (end - first, end - first + 1):
            return (
                f"its trajectory has {len(trajectory)} steps, its answer {end - first} teacher tokens; "
                "expected one step for each, or pairs [bytes, step]"
            )
        step_M[first:end] = trajectory[: end - first]
        step_M[end:] = trajectory[-1] if len(trajectory) > end - first else max(trajectory)
        return step_M
    sizes_P, steps_P = (np.array(column, np.int64) for column in zip(*trajectory, strict=True))
    if sizes_P.sum() != len(content.encode()):
        return f"its trajectory is of {sizes_P.sum()} bytes, its answer has {len(content.encode())}; expected as many"
    step_of_byte = np.repeat(steps_P, sizes_P)[offset : offset + stop - start]
    for token in np.flatnonzero((ends_M > start) & (starts_M < stop)).tolist():
        covered = step_of_byte[max(0, starts_M[token] - start) : ends_M[token] - start]
        step_M[token] = covered.max(initial=0)
    step_M[starts_M >= stop] = steps_P[-1] if sizes_P[-1] == 0 else steps_P.max()
    return step_M
