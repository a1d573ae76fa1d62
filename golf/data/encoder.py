"""A document as it is stored: its start, its tokens, and the bytes that each of them stands for."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from golf.data import caseops
from golf.data.texts import Document
from golf.data.tokenizer import Tokenizer
from golf.errors import BadFileError

Transform = Literal["auto", "none", "caseops"]

_MAX_COUNT = 0xFFFF  # a sidecar holds uint16


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A tokenizer and whether the text goes through CaseOps before it."""

    tokenizer: Tokenizer
    is_caseops: bool

    @classmethod
    def choose(cls, tokenizer: Tokenizer, transform: Transform) -> "Encoder":
        """Resolve "auto": CaseOps when the tokenizer has the four operators. BadFileError if it cannot do its part."""
        if tokenizer.bos_id < 0:
            raise BadFileError(tokenizer.path, "it has no document start (bos) piece", "train the tokenizer with one")
        has_operators = tokenizer.has_pieces(caseops.OPERATORS)
        if transform == "caseops" and not has_operators:
            raise BadFileError(tokenizer.path, "it lacks the case operators U+E001 to U+E004", "use the transform none")
        return cls(tokenizer, has_operators if transform == "auto" else transform == "caseops")

    def encode(self, documents: list[Document]) -> list[npt.NDArray[np.uint16]]:
        """Return each document's tokens with its start; an empty array if the tokenizer leaves nothing of it."""
        bos = np.array([self.tokenizer.bos_id], dtype=np.uint16)
        try:
            encoded = self.tokenizer.encode([self._transformed(document) for document in documents])
        except (RuntimeError, ValueError) as error:
            raise _refused(documents[0], error) from None
        return [np.concatenate([bos, ids]) if ids.size else ids for ids in encoded]

    def encode_counted(self, document: Document) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
        """Return the same for one document, and the bytes charged to each token: together, its UTF-8 length."""
        text = self._transformed(document)
        try:
            pieces = self.tokenizer.encode_pieces(text)
        except (RuntimeError, ValueError) as error:
            raise _refused(document, error) from None
        if not pieces.ids.size:
            return pieces.ids, pieces.ids
        charged = caseops.exact_bytes(pieces, caseops.bytes_before(text, is_encoded=self.is_caseops))
        if charged.max() > _MAX_COUNT:
            reason = f"line {document.line}: one token stands for {charged.max():,} bytes, more than a sidecar can hold"
            raise BadFileError(document.path, reason, "remove the long run of blanks or control characters")
        return np.insert(pieces.ids, 0, self.tokenizer.bos_id), charged.astype(np.uint16)

    def _transformed(self, document: Document) -> str:
        return caseops.encode(document.text) if self.is_caseops else document.text


def _refused(document: Document, error: Exception) -> BadFileError:
    reason = f"the tokenizer failed in the text from line {document.line} on ({error})"
    return BadFileError(document.path, reason, "repair or remove the document")
