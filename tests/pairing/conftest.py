"""Small tokenizers trained on the spot, and the real ones of the shared folder, loaded once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from helpers.fresh import IS_FULL
from tide_cache.pairing import TextTokenizer
from tide_cache.records import ChatRow, Message, SampleId

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = "{% for m in messages %}<role>{{ m['role'] }}</role>\n{{ m['content'] }}<|endoftext|>{% endfor %}"
WORDS = [
    "the cat sat on the mat and the dog sat on the log",
    "twelve and thirty are forty two; 12 + 30 = 42",
    "café naïve Ångström über größe 한국어 日本語 🎉🎉",
]

MakeTokenizer = Callable[..., Path]


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> MakeTokenizer:
    """Train a small byte-level BPE tokenizer and save it as a folder."""

    def make(
        name: str, *, size: int = 400, template: str | None = CHATML, is_nfc: bool = False, **config: str | None
    ) -> Path:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if is_nfc:
            backend.normalizer = normalizers.NFC()
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(WORDS * 4, trainer)
        folder = tmp_path_factory.mktemp(name)
        backend.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
        settings |= config
        text = json.dumps({key: value for key, value in settings.items() if value is not None})
        (folder / "tokenizer_config.json").write_text(text)
        return folder

    return make


@pytest.fixture(scope="session")
def small(make_tokenizer: MakeTokenizer) -> TextTokenizer:
    return TextTokenizer.load(str(make_tokenizer("small", size=300)), add_mask_token=True)


@pytest.fixture(scope="session")
def large(make_tokenizer: MakeTokenizer) -> TextTokenizer:
    """Other merges, another template, and an NFC normaliser."""
    folder = make_tokenizer("large", size=480, template=ROLES, is_nfc=True, eos_token="<|endoftext|>")
    return TextTokenizer.load(str(folder), add_mask_token=True)


@pytest.fixture(scope="session")
def load_shared(shared: Path) -> Callable[[str], TextTokenizer]:
    """Load a tokenizer of the shared folder once; none of them has a mask token, so one is appended."""
    loaded: dict[str, TextTokenizer] = {}

    def load(name: str) -> TextTokenizer:
        if name not in loaded:
            folder = str(shared / "tokenizers" / name)
            loaded[name] = TextTokenizer.load(folder, mask_token="<|tide-mask|>", add_mask_token=True)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def make_row() -> Callable[..., ChatRow]:
    """Turn contents into a conversation, the user first."""

    def make(*contents: str, name: str = "sample-0") -> ChatRow:
        roles = ("user", "assistant")
        messages = tuple(Message(roles[k % 2], content) for k, content in enumerate(contents))
        return ChatRow(SampleId(name), messages, f"{name}.jsonl:1")

    return make


@pytest.fixture(scope="session")
def gsm8k(shared: Path) -> list[ChatRow]:
    """The first rows of GSM8K."""
    lines = (shared / "data" / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[: 400 if IS_FULL else 100]
    return [
        ChatRow(
            SampleId(f"gsm8k-{k}"),
            (Message("user", row["question"]), Message("assistant", row["answer"])),
            f"gsm8k_train.jsonl:{k + 1}",
        )
        for k, row in enumerate(map(json.loads, lines))
    ]
