"""The demonstration's two small tokenizers, which are trained here and cut the same text differently.

Both are byte-level BPE with the 256 bytes at ids 0-255, merges after them and special tokens last. They differ in
what differs between published tokenizers: size, merges, how words and digits are split, special tokens, template.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tide_cache.demo.tasks import make_tasks

MASK_TOKEN = "<|mask|>"
_NUM_TASKS = 2000
_MODEL_MAX_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """Folders of the two tokenizers in Hugging Face layout."""

    first: Path
    second: Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """What distinguishes the tokenizers; `vocab_size` counts bytes, merges and special tokens."""

    name: str
    vocab_size: int
    split_pattern: str
    eos_token: str
    pad_token: str
    role_tokens: tuple[str, str]
    turn_template: str
    prompt_template: str

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, in the order of their ids."""
        return [self.pad_token, self.eos_token, *self.role_tokens, MASK_TOKEN]

    @property
    def chat_template(self) -> str:
        """In Jinja, of turns and of the prompt behind them."""
        return (
            "{%- for m in messages -%}" + self.turn_template + "{%- endfor -%}"
            "{%- if add_generation_prompt -%}" + self.prompt_template + "{%- endif -%}"
        )


FIRST = Recipe(
    name="first",
    vocab_size=384,
    split_pattern=r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # every digit is a separate piece
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    role_tokens=("<|user|>", "<|assistant|>"),
    turn_template="<|{{ m['role'] }}|>{{ m['content'] }}<|im_end|>{{ '\\n' }}",
    prompt_template="<|assistant|>",
)
SECOND = Recipe(
    name="second",
    vocab_size=512,
    split_pattern=r"[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # numbers whole, "(x" one word
    eos_token="<|endoftext|>",
    pad_token="<|pad|>",
    role_tokens=("<role>HUMAN</role>", "<role>ASSISTANT</role>"),
    turn_template=(
        "<role>{{ {'user': 'HUMAN', 'assistant': 'ASSISTANT'}[m['role']] }}</role>{{ m['content'] }}<|endoftext|>"
    ),
    prompt_template="<role>ASSISTANT</role>",
)


def train_vocabularies(folder: Path, seed: int) -> Vocabularies:
    """Train both tokenizers on generated tasks and save them as `folder/first` and `folder/second`.

    Args:
        folder: Created if missing; existing tokenizers are overwritten.
        seed: Determines every byte of both. Each tokenizer reads separate tasks, whose seeds derive from this one.

    Returns:
        Folders that `AutoTokenizer.from_pretrained` loads, each with a mask, an end and a padding token and a template.
    """
    return Vocabularies(
        first=train_tokenizer(FIRST, _texts(seed=2 * seed), folder),
        second=train_tokenizer(SECOND, _texts(seed=2 * seed + 1), folder),
    )


def train_tokenizer(recipe: Recipe, texts: Iterable[str], parent: Path) -> Path:
    """Train one tokenizer on texts, save it as `parent/recipe.name`, and return that folder."""
    return _save(recipe, _train(recipe, texts), parent)


def _train(recipe: Recipe, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(recipe.split_pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size - len(recipe.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(recipe.special_tokens)
    return tokenizer


def _texts(seed: int) -> Iterator[str]:
    for task in make_tasks(_NUM_TASKS, seed):
        yield task.question
        yield task.answer


def _save(recipe: Recipe, tokenizer: Tokenizer, parent: Path) -> Path:
    folder = parent / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "eos_token": recipe.eos_token,
        "pad_token": recipe.pad_token,
        "mask_token": MASK_TOKEN,
        "chat_template": recipe.chat_template,
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="ascii")
    return folder
