"""How fast rows become samples: qwen x falcon on GSM8K, next to a Python loop and to the tokenizers alone."""

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.options import Options, shared_file
from benchmarks.python_loop import Chunks, Tokens, bare_loop, reference_loop
from benchmarks.timing import Timings
from tide_cache.pairing import SamplePairer, TextTokenizer
from tide_cache.pairing.alignment import align_spans, tokens_within
from tide_cache.pairing.streams import TokenStream
from tide_cache.records import ChatRow, Int32s, Message, SampleId

# What the reference knows of the two chat templates, one entry for each kind of special token.
_TEACHER_SPECIALS = [(b"<|endoftext|>",), (b"<role>",), (b"</role>",), (b"HUMAN",), (b"ASSISTANT",), (b"SYSTEM",)]
_STUDENT_SPECIALS = [
    (b"<|endoftext|>",), (b"<|im_start|>",), (b"\n",), (b"<|im_end|>", b"\n"), (b"user",), (b"assistant",), (b"system",)
]  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """One side of every message: what the vectorised alignment takes, and what the loops take.

    Attributes:
        ends_N: Byte at which each token of the batch ends.
        spans_S2: Byte range of each message.
        first_S: First token of each message.
        tokens_S: Its tokens.
    """

    ends_N: npt.NDArray[np.int64]
    spans_S2: npt.NDArray[np.int64]
    first_S: npt.NDArray[np.int64]
    tokens_S: list[Tokens]


def run(options: Options) -> dict[str, float]:
    """Time alignment, the loops, tokenising alone and whole pairing, in turns."""
    student, teacher = _load("qwen"), _load("falcon")
    rows = gsm8k(options.rows)
    pairer = SamplePairer(
        teacher,
        student,
        teacher_max_length=1024,
        student_max_length=512,
        student_block_size=32,
        fill_last_block=True,
    )
    texts = [[tokenizer.render(row.messages).text for row in rows] for tokenizer in (teacher, student)]
    bare = [Tokenizer.from_file(str(shared_file(f"tokenizers/{name}/tokenizer.json"))) for name in ("falcon", "qwen")]
    left, right = _side(rows, teacher), _side(rows, student)
    _require_equal(_aligned(left, right), _looped(left, right), right)
    timings = Timings(
        {
            "align": lambda: _aligned(left, right),
            "python_loop": lambda: _looped(left, right),
            "bare_loop": lambda: [bare_loop(*sides) for sides in zip(left.tokens_S, right.tokens_S, strict=True)],
            "tokenise": lambda: [
                alone.encode_batch(side, add_special_tokens=False) for alone, side in zip(bare, texts, strict=True)
            ],
            "pair": lambda: pairer.pair_many(rows),
        },
        options.repeats,
    )
    return {
        **{f"{name}_samples_per_s": timings.rate(name, len(rows)) for name in timings.names},
        "align_ratio": timings.ratio("python_loop", "align"),
        "align_to_bare_loop_ratio": timings.ratio("bare_loop", "align"),
        "pair_ratio": timings.ratio("tokenise", "pair"),
    }


def _load(name: str) -> TextTokenizer:
    folder = str(shared_file(f"tokenizers/{name}"))
    return TextTokenizer.load(folder, mask_token="<|tide-mask|>", add_mask_token=True)


def gsm8k(num_rows: int) -> list[ChatRow]:
    """Read the first rows of the training set as conversations."""
    lines = shared_file("data/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:num_rows]
    return [
        ChatRow(
            SampleId(str(k)), (Message("user", row["question"]), Message("assistant", row["answer"])), f"gsm8k:{k + 1}"
        )
        for k, row in enumerate(map(json.loads, lines))
    ]


def _side(rows: list[ChatRow], tokenizer: TextTokenizer) -> _Side:
    stream = TokenStream(tokenizer.render_many([row.messages for row in rows]), tokenizer)
    spans_S2 = np.array(
        [
            stream.byte_range(text, chars)
            for text, rendered in enumerate(stream.rendered)
            for chars in rendered.contents
            if chars is not None
        ]
    )
    first_S, stop_S = tokens_within(stream.ends_N, spans_S2)
    ids = stream.ids_N.tolist()
    tokens_S: list[Tokens] = [
        [tokenizer.token_bytes.join([i]) for i in ids[a:b]] for a, b in zip(first_S, stop_S, strict=True)
    ]
    return _Side(stream.ends_N, spans_S2, first_S, tokens_S)


def _aligned(left: _Side, right: _Side) -> tuple[Int32s, npt.NDArray[np.int64]]:
    return align_spans(left.ends_N, right.ends_N, left.spans_S2, right.spans_S2)


def _looped(left: _Side, right: _Side) -> list[Chunks]:
    return [
        reference_loop(teacher, student, _TEACHER_SPECIALS, _STUDENT_SPECIALS)
        for teacher, student in zip(left.tokens_S, right.tokens_S, strict=True)
    ]


def _require_equal(aligned: tuple[Int32s, npt.NDArray[np.int64]], looped: list[Chunks], right: _Side) -> None:
    """Make sure that the two find the same chunks: a faster wrong answer is no figure."""
    chunks_C4, span_C = aligned
    ours = list(zip(span_C.tolist(), (chunks_C4[:, 3] - right.first_S[span_C]).tolist(), strict=True))
    theirs = [(span, chunk[3]) for span, chunks in enumerate(looped) for chunk in chunks]
    assert ours == theirs
