"""One tokenizer with its chat template and mask token: how a teacher or a student sees text."""

import datetime
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PretrainedConfig

from tide_cache.errors import PairingError, UnreadableError
from tide_cache.families import FAMILIES
from tide_cache.hub import SMALL_FILES, open_repository
from tide_cache.pairing import dates
from tide_cache.pairing.dates import on_day, random_names, writes_date
from tide_cache.pairing.encoding import Encoded, TokenBytes, ends_by_offsets
from tide_cache.pairing.rendered import Rendered, RenderError
from tide_cache.pairing.rendering import ChatTemplate, Conversation
from tide_cache.progress import doing
from tide_cache.records import Bools, Message
from tide_cache.unreadable import require_all_readable, told_apart

DEFAULT_MASK_TOKEN = "<|mask|>"
_CAUSAL = {name for name, family in FAMILIES.items() if family.native == "causal"}
_COPIED_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")


class HasConversation(Protocol):
    """A row that a chat template can write."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """Its turns."""

    @property
    def tools(self) -> str:
        """Functions that may be called, as in `ChatRow`."""


class TextTokenizer:
    """A fast Hugging Face tokenizer, checked for all that masked diffusion needs of it; made by `load`.

    Attributes:
        name: Path or hub name, for messages.
        mask_token: The mask token's text.
        mask_id: Its id.
        eos_id: The end-of-text token, which fills the last block.
        pad_id: The padding token; the end-of-text token where the tokenizer has none.
        vocab_size: One past the largest id, mask included.
        is_mask_added: The mask token is not in the original files.
        own_mask_token: The one that the original files name, whatever this one is.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        folder: Path,
        template: str,
        is_mask_added: bool,
        own_mask_token: str | None = None,
        today: datetime.date | None = None,
    ) -> None:
        """Wrap a tokenizer whose tokens and template are known to be there; use `load`.

        Args:
            tokenizer: The Hugging Face tokenizer, mask token set.
            name: Where it was loaded from.
            folder: Where its original files lie.
            template: Its chat template.
            is_mask_added: The mask token is not in the original files.
            own_mask_token: The one that the original files name.
            today: What the template takes for today; by default the day on which it is loaded.
        """
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._folder = folder
        self._template = template
        self.name = name
        self.show_day(today or dates.today())
        self.is_mask_added = is_mask_added
        self.own_mask_token = own_mask_token
        self.mask_token: str = tokenizer.mask_token
        self.mask_id: int = tokenizer.mask_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size: int = 1 + max(tokenizer.get_vocab().values())

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        mask_token: str | None = None,
        mask_id: int | None = None,
        add_mask_token: bool = False,
        chat_template: Path | None = None,
        today: datetime.date | None = None,
    ) -> "TextTokenizer":
        """Load a tokenizer; code that comes with it is never run.

        Args:
            path: Folder with tokenizer.json, or a hub name.
            revision: Commit of a hub tokenizer.
            mask_token: The mask token's text, which may be any token of the vocabulary; by default the tokenizer's
                own mask token.
            mask_id: The mask token's id, if the checkpoint states it; goes before the tokenizer's own one.
            add_mask_token: Append the mask token (`<|mask|>` unless named) to a vocabulary that lacks it.
            chat_template: Jinja file that replaces the tokenizer's template.
            today: What a template that writes the date takes for today; by default the day on which it is loaded.

        Raises:
            PairingError: It cannot be loaded, or lacks a mask token, an end-of-text token or a chat template.
            UnreadableError: A file of it cannot be read now.
        """
        with doing(f"Loading tokenizer {path}"):
            folder = open_repository(path, revision, PairingError).folder
        tokenizer = _load(path, folder)
        if mask_token is None and mask_id is not None and not add_mask_token:
            mask_token = _token_of(tokenizer, path, mask_id)
        own: str | None = tokenizer.mask_token
        text = _mask_token_of(tokenizer, path, folder, mask_token, add_mask_token)
        is_mask_added = text not in tokenizer.get_vocab()
        if own != text:
            tokenizer.add_special_tokens({"mask_token": text})
        if tokenizer.eos_token_id is None:
            raise PairingError(
                f"{path}: the tokenizer has no end-of-text token (eos_token), which fills the last block of a sample. "
                'Name one in its tokenizer_config.json: "eos_token": "<|endoftext|>".'
            )
        return cls(tokenizer, path, folder, _template_of(tokenizer, path, chat_template), is_mask_added, own, today)

    @property
    def commit(self) -> str | None:
        """Commit of the hub's repository that it came from; None for a folder."""
        return None if Path(self.name).is_dir() else self._folder.name

    @property
    def writes_date(self) -> bool:
        """Whether the chat template asks for the date."""
        return writes_date(self._template)

    @property
    def today(self) -> datetime.date | None:
        """What the chat template takes for today; None for one that does not ask."""
        return self._today if self.writes_date else None

    def show_day(self, today: datetime.date) -> None:
        """Make the chat template take a day for today, from the next text on.

        Args:
            today: Which day.
        """
        self._today = today
        self._shown_template = on_day(self._template, today)
        self._chat = ChatTemplate(self._render_texts, self._template, self.name)  # it caches what it has rendered

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
        """Render a conversation with the chat template and locate each content.

        Templates with a switch for reasoning are told not to think.

        Args:
            messages: The conversation.
            add_generation_prompt: Also write what precedes an answer.

        Raises:
            PairingError: The template cannot render the messages with every content as it is.
        """
        return self._chat.render(messages, add_generation_prompt)

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render several conversations, as `render` does."""
        return self._chat.render_many(conversations)

    def try_render(
        self, rows: Sequence[HasConversation], add_generation_prompt: bool = False
    ) -> list[Rendered | RenderError]:
        """Render rows, in their order; what is wrong stands in place of those that cannot be rendered.

        Args:
            rows: Conversations.
            add_generation_prompt: Also write what precedes an answer.
        """
        if not any(row.tools for row in rows):
            return self._chat.try_many([row.messages for row in rows], add_generation_prompt)
        numbers: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            numbers.setdefault(row.tools, []).append(number)
        found: dict[int, Rendered | RenderError] = {}
        for tools, some in numbers.items():
            conversations = [rows[number].messages for number in some]
            results = self._chat.try_many(conversations, add_generation_prompt, tools)
            found.update(zip(some, results, strict=True))
        return [found[number] for number in range(len(rows))]

    def encode(self, text: str) -> Encoded:
        """Tokenize a text unchanged: no token is added before or after it."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenize several texts in parallel."""
        result = []
        for text, encoding in zip(texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True):
            ids: list[int] = encoding.ids
            ids_L = np.array(ids, dtype=np.int32)
            is_exact = self.token_bytes.join(ids) == text.encode()
            ends_L = self.token_bytes.ends(ids_L) if is_exact else ends_by_offsets(text, encoding.offsets)
            result.append(Encoded(ids_L, ends_L, is_exact))
        return result

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize several texts where only the ids are asked for; much faster for many short ones."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], skip_special: bool = False) -> str:
        """Return the text of tokens, with special tokens written out unless skipped."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)
        return text

    @cached_property
    def tokens(self) -> tuple[str | None, ...]:
        """Token strings by id, as the vocabulary writes them; None where an id has no token."""
        tokens: list[str | None] = [None] * self.vocab_size
        for token, i in self._tokenizer.get_vocab().items():
            tokens[i] = token
        return tuple(tokens)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of every token."""
        is_byte_level = any("ByteLevel" in str(part) for part in (self._backend.decoder, self._backend.pre_tokenizer))
        return TokenBytes(self.tokens, self._flags(special_only=False), is_byte_level)

    @cached_property
    def is_special_V(self) -> Bools:
        """Special tokens by id: what a template writes, never a part of the text."""
        is_special_V = self._flags(special_only=True)
        is_special_V[[self.eos_id, self.mask_id]] = True
        return is_special_V

    def fingerprint(self) -> dict[str, str]:
        """Return a fingerprint: equal ones mean equal tokens for equal conversations.

        Returns:
            SHA-256 of the canonical tokenizer.json (token mapping, added tokens, merges, normaliser, pre-tokenizer)
            and of the chat template, and the mask token's id.
        """
        return {
            "tokenizer": self._tokenizer_digest,
            "chat_template": hashlib.sha256(self._template.encode()).hexdigest(),
            "mask_token_id": str(self.mask_id),
        }

    @property
    def special_tokens(self) -> dict[str, str | list[str]]:
        """Special tokens by purpose, as templates see them; fingerprints leave them out."""
        return dict(self._tokenizer.special_tokens_map)

    def reads_like(self, other: "TextTokenizer") -> bool:
        """Return whether both produce the same text and the same tokens for every conversation.

        Args:
            other: Another tokenizer. Templates may write the special tokens, which fingerprints leave out.
        """
        is_alike = self.special_tokens == other.special_tokens and self.today == other.today
        return is_alike and self.fingerprint() == other.fingerprint()

    def save(self, folder: Path) -> None:
        """Write the original tokenizer files, with the mask token and the chat template in them.

        The files are copied, because older releases of transformers cannot load what newer ones save.

        Args:
            folder: Made if missing; holds afterwards what `load` and `AutoTokenizer` take without options.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in _COPIED_FILES:
            if (source := self._folder / name).is_file():
                shutil.copyfile(source, folder / name)
        original = self._folder / "tokenizer.json"
        if self.is_mask_added:
            backend = Tokenizer.from_file(str(original))
            backend.add_special_tokens([AddedToken(self.mask_token, special=True, normalized=False)])
            backend.save(str(folder / "tokenizer.json"))
        else:
            shutil.copyfile(original, folder / "tokenizer.json")
        config_file = self._folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        config |= {"mask_token": self.mask_token, "chat_template": self._template}
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @cached_property
    def _tokenizer_digest(self) -> str:
        content = json.loads(self._backend.to_str())
        for run_time_setting in ("truncation", "padding"):
            del content[run_time_setting]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _flags(self, special_only: bool) -> Bools:
        flags_V = np.zeros(self.vocab_size, bool)
        added = self._tokenizer.added_tokens_decoder.items()
        flags_V[[i for i, token in added if token.special or not special_only]] = True
        return flags_V

    def _render_texts(
        self, conversations: list[Conversation], add_generation_prompt: bool, tools: str = ""
    ) -> list[str]:
        texts: list[str] = self._tokenizer.apply_chat_template(
            conversations,
            chat_template=self._shown_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
            **({"tools": json.loads(tools)} if tools else {}),
        )
        return texts


def shared_vocab_size(teacher: TextTokenizer, student: TextTokenizer) -> int:
    """Find the largest n such that every id below n is the same token for both.

    Args:
        teacher: The teacher's tokenizer.
        student: The student's.
    """
    size = min(teacher.vocab_size, student.vocab_size)
    differs = np.array(teacher.tokens[:size], dtype=object) != np.array(student.tokens[:size], dtype=object)
    return int(np.argmax(differs)) if differs.any() else size


def _load(path: str, folder: Path) -> Any:
    require_all_readable(folder, SMALL_FILES)  # transformers calls what it may not open missing, or goes on without it
    try:
        # The class is named in tokenizer_config.json; a config.json next to it, of any model_type, is ignored.
        with told_apart(folder):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, config=PretrainedConfig(), trust_remote_code=False
            )
    except UnreadableError:
        raise
    except Exception as error:  # the loader raises OSError, ValueError, KeyError and bare Exception for bad files
        raise PairingError(
            f"{path}: no tokenizer can be loaded from here: {error}\n"
            "Expected a folder with tokenizer.json and tokenizer_config.json, or a hub name and its revision; "
            "a tokenizer that needs its own code to run cannot be used."
        ) from error
    if not tokenizer.is_fast or not (folder / "tokenizer.json").is_file():
        raise PairingError(
            f"{path}: found a {type(tokenizer).__name__} without tokenizer.json; expected a fast tokenizer. Convert "
            "it once: AutoTokenizer.from_pretrained(...).save_pretrained('folder'), and give that folder."
        )
    return tokenizer


def _mask_token_of(tokenizer: Any, path: str, folder: Path, mask_token: str | None, add_mask_token: bool) -> str:
    """Decide the mask token's text; only with `add_mask_token` may it be outside the vocabulary."""
    text: str | None = mask_token if mask_token is not None else tokenizer.mask_token
    if add_mask_token:
        return DEFAULT_MASK_TOKEN if text is None else text
    vocabulary = tokenizer.get_vocab()
    if text is not None and text in vocabulary:
        return text
    looked_for = "its own mask_token, which is not set" if text is None else f"{text!r}, which is not in its vocabulary"
    known = vocabulary.get(DEFAULT_MASK_TOKEN)
    hint = f"It does hold {DEFAULT_MASK_TOKEN!r}, id {known}. " if known is not None else ""
    raise PairingError(
        f"{path}: the tokenizer has no mask token; looked for {looked_for}. {hint}"
        f"{_way_to_mask_token(path, _model_type(folder))}"
    )


def _way_to_mask_token(path: str, model_type: str | None) -> str:
    """Return how to get a mask token, which depends on the model in the tokenizer's folder."""
    named = (
        "mask_token = '...' in the tokenizer's section of a run file, or \"mask_token\" in its tokenizer_config.json"
    )
    if model_type in _CAUSAL:
        return (
            f"This is a causal model ({model_type}), which cannot denoise yet: convert it (tide-cache convert {path} "
            "--out FOLDER), then train it. As a teacher it needs no mask token under teacher.context = 'causal'. Or, "
            f"to train it as it is, name a token of its vocabulary that no text holds: {named}."
        )
    if model_type is not None:
        return (
            f"Name the one that this {model_type} was trained with: {named} (the published Qwen3 diffusion student has "
            f"{DEFAULT_MASK_TOKEN!r} = 151669)."
        )
    return (
        f"Name a token of its vocabulary that no text holds: {named}; or, for a model that is trained from scratch, "
        "append one: add_mask_token = true."
    )


def _model_type(folder: Path) -> str | None:
    """Return the kind of the model in a tokenizer's folder; None for a tokenizer alone."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return str(found) if found else None


def _token_of(tokenizer: Any, path: str, mask_id: int) -> str:
    token: str | None = tokenizer.convert_ids_to_tokens(mask_id)
    if token is None:
        raise PairingError(
            f"{path}: the checkpoint was trained with the mask token of id {mask_id}, and this tokenizer has no token "
            "of that id; use the tokenizer that belongs to the checkpoint."
        )
    return token


def _template_of(tokenizer: Any, path: str, file: Path | None) -> str:
    template = _stated_template(tokenizer, path, file)
    if names := random_names(template):
        raise PairingError(
            f"{path}: the chat template uses {' and '.join(names)}, which gives another text each time; expected one "
            "that gives the same text for the same conversation. Give such a one: chat_template = 'file.jinja'."
        )
    return template


def _stated_template(tokenizer: Any, path: str, file: Path | None) -> str:
    if file is not None:
        try:
            with told_apart(file):
                return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PairingError(
                f"{file}: the chat template of {path} cannot be read: {error}. Give a Jinja file in UTF-8."
            ) from None
    if not tokenizer.chat_template:
        raise PairingError(
            f"{path}: the tokenizer has no chat template. Give one: chat_template = 'file.jinja' (and the same file "
            "wherever this model is used)."
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(tokenizer.chat_template)
        raise PairingError(
            f"{path}: the tokenizer has several chat templates ({names}), and none of them is called default. Write "
            "the one that the model is to be used with into a file and give it: chat_template = 'file.jinja' (in "
            "tokenizer_config.json they are under chat_template, or they lie in additional_chat_templates/)."
        )
    template: str = tokenizer.get_chat_template()
    return template
