"""How many bytes of text a scored token stands for: the denominator of bits per byte.

Two sources. A byte sidecar says it for every position of the validation stream. Without one, the tokenizer's own
pieces do: bytes(y | x) = base[y] + [lead[y] and not bound[x]] for target y after token x, where a leading space costs
one byte unless x is a boundary such as the document start. The table is wrong for text that was transformed or
normalized before it was tokenized.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from golf.data.caseops import OPERATORS
from golf.data.shards import Dataset
from golf.data.tokenizer import SPACE, load_tokenizer
from golf.errors import BadFileError, UsageError


class ByteCounter(Protocol):
    """What evaluation asks for bytes."""

    def bytes_of(self, tokens: npt.NDArray[np.uint16], start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the bytes of the targets at positions start + 1 … stop of the validation stream `tokens`."""


@dataclass(frozen=True, slots=True, eq=False)
class TableByteCounter:
    """Bytes by token id, from the tokenizer's pieces; each table has one entry an id."""

    base: npt.NDArray[np.int16]
    lead: npt.NDArray[np.bool_]
    bound: npt.NDArray[np.bool_]

    @classmethod
    def from_tokenizer(cls, path: Path, vocab_size: int) -> "TableByteCounter":
        """Build the tables for ids 0 … max(pieces, vocab_size) - 1; ids without text are 0 bytes and boundaries."""
        tokenizer = load_tokenizer(path)
        if not tokenizer.has_pieces(SPACE):
            raise BadFileError(path, "it has no piece for a space (U+2581)", "prepare the data with another tokenizer")
        size = max(tokenizer.vocab_size, vocab_size)
        base, lead, bound = np.zeros(size, np.int16), np.zeros(size, np.bool_), np.ones(size, np.bool_)
        processor = tokenizer.processor
        for token in range(tokenizer.vocab_size):
            if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
                continue
            piece: str = processor.id_to_piece(token)
            lead[token] = piece.startswith(SPACE)
            base[token] = 1 if processor.is_byte(token) else len(piece.removeprefix(SPACE).encode())
            bound[token] = False
        return cls(base, lead, bound)

    def bytes_of(self, tokens: npt.NDArray[np.uint16], start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the bytes of the targets at positions start + 1 … stop."""
        _check_range(start, stop, len(tokens))
        previous, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
        return self.base[targets].astype(np.int64) + (self.lead[targets] & ~self.bound[previous])


@dataclass(frozen=True, slots=True, eq=False)
class SidecarByteCounter:
    """Bytes by stream position, as recorded when the text was tokenized."""

    val_bytes: npt.NDArray[np.uint16]

    def bytes_of(self, tokens: npt.NDArray[np.uint16], start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the bytes of the targets at positions start + 1 … stop."""
        _check_range(start, stop, len(self.val_bytes))
        return self.val_bytes[start + 1 : stop + 1].astype(np.int64)


def byte_counter(dataset: Dataset, vocab_size: int) -> ByteCounter:
    """Choose the source: the sidecar if there is one, else the tokenizer's table, else UsageError.

    A tokenizer of case operators without a sidecar is refused: its table would count the operators as text.
    """
    sidecar = dataset.val_bytes()
    if sidecar is not None:
        return SidecarByteCounter(sidecar)
    if dataset.tokenizer is None:
        raise UsageError(
            f"{dataset.folder}: neither a byte sidecar (*_val_bytes_000000.bin) nor a tokenizer (*.model), so bits per "
            "byte cannot be computed; put one of them into the folder"
        )
    if load_tokenizer(dataset.tokenizer).has_pieces(OPERATORS):
        raise UsageError(
            f"{dataset.folder}: its tokenizer has case operators, whose text only a byte sidecar "
            "(*_val_bytes_000000.bin) can count; put the sidecar into the folder"
        )
    return TableByteCounter.from_tokenizer(dataset.tokenizer, vocab_size)


def _check_range(start: int, stop: int, length: int) -> None:
    if not 0 <= start <= stop < max(length, 1):
        raise ValueError(f"targets {start + 1} to {stop} asked of a stream of {length} tokens")
