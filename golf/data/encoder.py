"""A document as it is stored: its start, its tokens, and the bytes that each of them stands for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from golf.data import caseops
from golf.data.texts import Document
from golf.data.tokenizer import Tokenizer
from golf.data.words import Words
from golf.errors import BadFileError

Transform = Literal["auto", "none", "caseops"]

_MAX_COUNT = 0xFFFF  # a sidecar holds uint16


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A tokenizer and whether the text goes through CaseOps before it; made by `choose`."""

    tokenizer: Tokenizer
    is_caseops: bool
    ids_of: Callable[[str], npt.NDArray[np.uint16]]  # of a text as it was written

    @classmethod
    def choose(cls, tokenizer: Tokenizer, transform: Transform) -> "Encoder":
        """Resolve "auto": CaseOps when the tokenizer has the four operators. BadFileError if it cannot do its part."""
        if tokenizer.bos_id < 0:
            raise BadFileError(tokenizer.path, "it has no document start (bos) piece", "train the tokenizer with one")
        has_operators = tokenizer.has_pieces(caseops.OPERATORS)
        if transform == "caseops" and not has_operators:
            raise BadFileError(tokenizer.path, "it lacks the case operators U+E001 to U+E004", "use the transform none")
        is_caseops = has_operators if transform == "auto" else transform == "caseops"
        ids_of = partial(_ids, tokenizer, is_caseops)
        return cls(tokenizer, is_caseops, Words(ids_of).encode if tokenizer.keeps_words_apart() else ids_of)

    def encode(self, document: Document) -> npt.NDArray[np.uint16]:
        """Return a document's tokens with its start; an empty array if the tokenizer leaves nothing of it."""
        try:
            ids = self.ids_of(document.text)
        except (RuntimeError, ValueError) as error:
            raise _refused(document, error) from None
        return np.insert(ids, 0, self.tokenizer.bos_id) if ids.size else ids

    def encode_counted(self, document: Document) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
        """Return the same tokens and the bytes charged to each, by `caseops.exact_bytes`: together, its UTF-8 length.

        Both are empty if the tokenizer leaves nothing of it. BadFileError if one token is charged more than a sidecar
        can hold.
        """
        text = caseops.encode(document.text) if self.is_caseops else document.text
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


def _ids(tokenizer: Tokenizer, is_caseops: bool, text: str) -> npt.NDArray[np.uint16]:
    return tokenizer.encode(caseops.encode(text) if is_caseops else text)


def _refused(document: Document, error: Exception) -> BadFileError:
    reason = f"line {document.line}: the tokenizer failed ({error})"
    return BadFileError(document.path, reason, "repair or remove the document")
