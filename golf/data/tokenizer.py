"""A SentencePiece tokenizer, with what the data rooms ask of it: ids, and the bytes of text behind each id."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]  # made by protoc
    ModelProto,
    TrainerSpec,
)
from sentencepiece.sentencepiece_pb2 import SentencePieceText  # type: ignore[attr-defined]  # made by protoc

from golf.errors import BadFileError

TOKENIZER_NAME = "tokenizer.model"  # in the folders that golf writes
SPACE = "\u2581"  # SentencePiece writes a space so

_MAX_VOCAB = 1 << 16  # shards hold uint16
_BUILT_IN = {"identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"}  # the library's own normalizations


class Pieces(NamedTuple):
    """One text as pieces: their ids, and the UTF-8 range of the text that each came from (its surface)."""

    ids: npt.NDArray[np.uint16]
    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """A loaded model; `processor` is the library's own object."""

    path: Path
    processor: Any
    sha256: str

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self.processor.get_piece_size())

    @property
    def bos_id(self) -> int:
        """Id of the document start, or -1 if the model has none."""
        return int(self.processor.bos_id())

    def describe(self) -> dict[str, Any]:
        """Return what a manifest says of the copy in its folder."""
        return {"file": TOKENIZER_NAME, "sha256": self.sha256, "vocab_size": self.vocab_size, "bos_id": self.bos_id}

    def has_pieces(self, pieces: str) -> bool:
        """Tell whether every character of `pieces` is a piece of its own."""
        return all(self.processor.piece_to_id(piece) != self.processor.unk_id() for piece in pieces)

    def keeps_words_apart(self) -> bool:
        """Tell whether words that one space separates can be tokenized one by one, with the same ids as together.

        So it is with byte-pair merges when no piece has a space after its first character and the normalization is
        one of the library's own: merges of one word then never depend on another. (A unigram model breaks ties by
        rounding, which does.)
        """
        model = ModelProto.FromString(self.processor.serialized_model_proto())
        return (
            model.trainer_spec.model_type == TrainerSpec.BPE
            and model.normalizer_spec.escape_whitespaces
            and model.normalizer_spec.name in _BUILT_IN
            and self.has_pieces(SPACE)
            and not any(SPACE in piece.piece[1:] or " " in piece.piece for piece in model.pieces)
        )

    def encode(self, text: str) -> npt.NDArray[np.uint16]:
        """Return the ids of `text`, without a document start."""
        return np.array(self.processor.encode(text, out_type=int), dtype=np.uint16)

    def encode_pieces(self, text: str) -> Pieces:
        """Return the ids of `text` with their surfaces; half the speed of `encode`."""
        proto = SentencePieceText.FromString(self.processor.encode(text, out_type="serialized_proto"))
        rows = np.array([(piece.id, piece.begin, piece.end) for piece in proto.pieces], dtype=np.int64).reshape(-1, 3)
        return Pieces(rows[:, 0].astype(np.uint16), rows[:, 1], rows[:, 2])


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a SentencePiece model; BadFileError if it cannot be read, is none, or has ids over 65,535."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise BadFileError(path, f"the tokenizer cannot be read ({error.strerror})", "check the path") from None
    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except (RuntimeError, OSError, ValueError) as error:
        raise BadFileError(path, f"it is no SentencePiece model ({error})", "give a .model file") from None
    tokenizer = Tokenizer(path, processor, hashlib.sha256(model).hexdigest())
    if not 0 < tokenizer.vocab_size <= _MAX_VOCAB:
        raise BadFileError(path, f"it has {tokenizer.vocab_size} ids, but shards hold 1 to {_MAX_VOCAB}", "use another")
    return tokenizer
