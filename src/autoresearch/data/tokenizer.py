"""Byte-level BPE: trained once for a dataset, stored as tokenizer.json, and the byte length of each
token.

Every text has exactly one encoding, and the raw bytes of its tokens are its UTF-8 bytes: no
normalisation, nothing unknown. The special tokens are the last NUM_SPECIAL ids. They are in the
vocabulary but no merge makes them and no added-token rule finds them, so text that says "<|bos|>"
is encoded as these seven characters.

Two tables of byte lengths: the true one, from the raw bytes of each token; and the decoded one, in
which a token that is not valid UTF-8 by itself is first decoded with replacement characters, as the
reference implementation does. The second exists only so that scores can be compared with published
ones. Special tokens count zero in both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autoresearch.values.errors import DataError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as _Backend

Tokens = npt.NDArray[np.uint16]

SPECIAL_TOKENS = ("<|bos|>", "<|reserved_1|>", "<|reserved_2|>", "<|reserved_3|>")
NUM_SPECIAL = len(SPECIAL_TOKENS)
MAX_VOCAB_SIZE = 32_768  # rows travel as int16 bits
# What the caller should give `train_tokenizer` at most: characters in all, and of one document.
MAX_TRAIN_CHARS = 250_000_000
MAX_DOCUMENT_CHARS = 10_000

# What is never merged across: contractions; a word with at most one other character in front; one
# or two digits; punctuation with a space in front and line ends behind; a line end with the blanks
# before it; blanks but for the last before a word; blanks.
SPLIT_PATTERN = "|".join(
    [
        r"'(?i:s|d|m|t|ll|ve|re)",
        r"[^\p{L}\p{N}\r\n]?\p{L}+",
        r"\p{N}{1,2}",
        r" ?[^\p{L}\p{N}\s]+[\r\n]*",
        r"\s*[\r\n]",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


class Tokenizer:
    """Text to token ids and back. Encoding uses all cores."""

    def __init__(self, text: str, origin: str = "tokenizer.json") -> None:
        """Load what `train_tokenizer` returned.

        Raises:
            DataError: not such a text.
        """
        from tokenizers import Tokenizer as Backend

        try:
            self._backend: _Backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise DataError(
                f"{origin} is not a tokenizer ({error}); run `autoresearch prepare --repair`"
            ) from error
        self.text = text
        self.vocab_size: int = self._backend.get_vocab_size()
        self.bos = self.vocab_size - NUM_SPECIAL
        if self._backend.id_to_token(self.bos) != SPECIAL_TOKENS[0]:
            raise DataError(
                f"{origin} has no {SPECIAL_TOKENS[0]} at {self.bos}; "
                "run `autoresearch prepare --repair`"
            )

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Load a tokenizer.json."""
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read ({error}); run `autoresearch prepare --repair`"
            ) from error

    @property
    def sha256(self) -> str:
        """Hash of the tokenizer's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, without the beginning-of-sequence token."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint16) for encoding in encodings]

    def encode(self, text: str) -> Tokens:
        """Token ids of one text, without the beginning-of-sequence token."""
        return self.encode_batch([text])[0]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; special tokens give nothing, broken UTF-8 gives U+FFFD."""
        raw = self.token_bytes
        return b"".join(raw[int(token)] for token in tokens).decode("utf-8", "replace")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The raw bytes of every token by id; empty for special tokens."""
        alphabet = {character: byte for byte, character in _byte_alphabet().items()}
        names: list[Any] = [self._backend.id_to_token(token) for token in range(self.bos)]
        return [bytes(alphabet[character] for character in name) for name in names] + [
            b""
        ] * NUM_SPECIAL

    def byte_lengths(self) -> npt.NDArray[np.uint16]:
        """True bytes of each token, (V,)."""
        return np.array([len(raw) for raw in self.token_bytes], dtype=np.uint16)

    def decoded_byte_lengths(self) -> npt.NDArray[np.uint16]:
        """Bytes of each token decoded alone with replacement characters, (V,)."""
        decoded = (raw.decode("utf-8", "replace").encode() for raw in self.token_bytes)
        return np.array([len(text) for text in decoded], dtype=np.uint16)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` tokens, special ones included, from the front of `texts`. The same texts
    give the same result.

    Raises:
        UserError: the vocabulary is impossible, or the text is too poor for it.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    check_vocab_size(vocab_size)
    backend = Backend(models.BPE())
    splitter = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([splitter, to_bytes])
    backend.decoder = decoders.ByteLevel()
    num_learned = vocab_size - NUM_SPECIAL
    trainer = trainers.BpeTrainer(
        vocab_size=num_learned,
        special_tokens=[],
        initial_alphabet=sorted(_byte_alphabet().values()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != num_learned:
        raise UserError(
            f"the training text gives only {backend.get_vocab_size() + NUM_SPECIAL} different "
            f"tokens, data.vocab_size is {vocab_size}; lower it or add text"
        )
    return Tokenizer(_with_special_tokens(backend.to_str(), num_learned))


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary that cannot be.

    Raises:
        UserError: too small for all bytes and the special tokens, or too large for a row.
    """
    least = 256 + NUM_SPECIAL
    if not least <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"data.vocab_size is {vocab_size}, expected {least} to {MAX_VOCAB_SIZE}")


def _with_special_tokens(text: str, first_id: int) -> str:
    document = json.loads(text)
    for offset, name in enumerate(SPECIAL_TOKENS):
        document["model"]["vocab"][name] = first_id + offset
    return json.dumps(document, ensure_ascii=False, indent=1)


def _byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (the convention
    of GPT-2).

    Bytes that print in Latin-1 stand for themselves; the others, in order, for the characters from
    U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + i) for i, byte in enumerate(others)
    }
