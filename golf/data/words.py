"""Tokenizing word by word: once for each word, not for each time that it occurs.

Most text is words seen before, and most tokenizers never join two of them. Then the tokens of a text are those of its
words side by side, and looking a word up costs a tenth of tokenizing it. It also makes the time linear: byte-pair
merges queue up over a whole text.
"""

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

# A space behind a printable ASCII character: what stands before it has no part in what becomes of it.
_BREAK = re.compile(" (?<=[!-~] )")
_LEAD = "."  # a word is tokenized behind it and a space, to be a word inside a text

_MAX_WORDS = 1 << 19  # remembered, some 150 bytes each
_MAX_LETTERS = 64  # a longer one will not be seen again


class Words(dict[str, bytes]):
    """The ids (uint16, as bytes) of each word behind a space; a word that is not here yet is tokenized when asked for.

    `tokenize` returns the ids of a text; those of words that one space separates must not depend on each other
    (Tokenizer.keeps_words_apart).
    """

    def __init__(self, tokenize: Callable[[str], npt.NDArray[np.uint16]]) -> None:
        super().__init__()
        self._tokenize = tokenize
        self._lead_ids = tokenize(_LEAD).size

    def encode(self, text: str) -> npt.NDArray[np.uint16]:
        """Return what `tokenize(text)` returns, read-only."""
        first, *words = _BREAK.split(text)
        ids = b"".join([self._tokenize(first).tobytes(), *map(self.__getitem__, words)])
        return np.frombuffer(ids, dtype=np.uint16)

    def __missing__(self, word: str) -> bytes:
        ids = self._tokenize(f"{_LEAD} {word}")[self._lead_ids :].tobytes()
        if len(word) <= _MAX_LETTERS and len(self) < _MAX_WORDS:
            self[word] = ids
        return ids
