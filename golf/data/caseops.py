"""CaseOps: a lossless text transform that turns capitals into operators, and the byte count that undoes it.

Each maximal run of ASCII letters is written in lower case behind its case: TITLE `word`, ALLCAPS `word`, or CAPNEXT
before each further capital. The operators are U+E001 … U+E004; where the text itself has one of these characters, ESC
goes before it. Everything else is copied.

Bytes are counted on the original text. The tokenizer reports which UTF-8 range of the transformed text each piece came
from (its surface); operators weigh nothing in it and everything else its own bytes.
"""

import re

import numpy as np
import numpy.typing as npt

from golf.data.tokenizer import Pieces

OPERATORS = TITLE, ALLCAPS, CAPNEXT, ESC = "\ue001\ue002\ue003\ue004"

# A match begins at the first capital of a run or at a literal operator, so lower-case text costs no Python call.
_TO_ENCODE = re.compile(f"[A-Z][A-Za-z]*|[{OPERATORS}]")
_CAPITALS = {capital: CAPNEXT + chr(capital).lower() for capital in range(ord("A"), ord("Z") + 1)}

# Possessive repeats never give a character back: linear time, and a marker right behind a word stays an error.
_WORD = f"(?:{CAPNEXT}?[A-Za-z])++"
_WELL_FORMED = re.compile(
    f"(?:[^A-Za-z{OPERATORS}]|[{TITLE}{ALLCAPS}]?{_WORD}(?![{TITLE}{ALLCAPS}])|{ESC}.)*+", re.DOTALL
)
_TO_DECODE = re.compile(f"{ESC}(.)|([{TITLE}{ALLCAPS}])({_WORD})|{CAPNEXT}(.)", re.DOTALL)

_OPERATOR_BYTES = re.compile(b"\xee\x80\x84(?:\xee\x80[\x81-\x84])?|\xee\x80[\x81-\x83]")


def encode(text: str) -> str:
    """Transform `text`; decode(encode(text)) == text for every string. Linear time."""
    return _TO_ENCODE.sub(_encode_match, text)


def decode(text: str) -> str:
    """Undo `encode`; ValueError at the first operator that cannot stand where it does."""
    match = _WELL_FORMED.match(text)
    end = match.end() if match else 0
    if end < len(text):
        raise ValueError(f"malformed case operators at character {end}: {text[end : end + 8]!a}")
    return _TO_DECODE.sub(_decode_match, text)


def bytes_before(text: str, *, is_encoded: bool) -> npt.NDArray[np.int64]:
    """Return, for each UTF-8 offset 0 … N of `text`, the bytes of original text before it.

    If the text `is_encoded`, the operators count nothing, except a literal one behind its ESC.
    """
    utf8 = text.encode()
    weights = np.ones(len(utf8) + 1, dtype=np.int64)
    weights[0] = 0
    if is_encoded:
        starts = np.array([match.start() for match in _OPERATOR_BYTES.finditer(utf8)], dtype=np.int64)
        weights[starts[:, None] + [1, 2, 3]] = 0
    return np.cumsum(weights)


def exact_bytes(pieces: Pieces, before: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the bytes charged to a document's tokens, the document start first; their sum is the text's UTF-8 length.

    This is the default counting, for every string. A token is charged from where the last one ended to where it ends.
    What the tokenizer folds is charged to the token that it became part of. What it drops (blanks, control characters)
    goes to the token before it; at the beginning of a text to the first token, and to the document start if the text
    leaves no token at all, which is otherwise 0. `Encoder` skips such texts, so prepared data never charges a start.
    """
    charged = np.concatenate([[0], before[pieces.ends]])
    charged[-1] = before[-1]
    return np.diff(charged, prepend=0)


def reference_bytes(pieces: Pieces, before: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the reference's counting, the document start (0) first: each token's surface and no more.

    The published sidecars were counted so. What the tokenizer drops at the ends of a text is charged to nobody, so the
    sum may be less than the text's UTF-8 length.
    """
    return np.concatenate([[0], before[pieces.ends] - before[pieces.begins]])


def _encode_match(match: re.Match[str]) -> str:
    word, start = match[0], match.start()
    if word in OPERATORS:
        return ESC + word
    if start and "a" <= match.string[start - 1] <= "z":  # the run began in lower case
        return word.translate(_CAPITALS)
    rest = word[1:]
    if not rest or rest.islower():
        return TITLE + word.lower()
    if word.isupper():
        return ALLCAPS + word.lower()
    return TITLE + word[0].lower() + rest.translate(_CAPITALS)


def _decode_match(match: re.Match[str]) -> str:
    literal, marker, word, capital = match.groups()
    if literal:
        return str(literal)
    if capital:
        return str(capital).upper()
    if marker == ALLCAPS:
        return str(word).replace(CAPNEXT, "").upper()
    plain = _TO_DECODE.sub(_decode_match, word)
    return plain[0].upper() + plain[1:]
