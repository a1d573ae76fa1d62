import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golf.data.caseops import OPERATORS, bytes_before, decode, encode, exact_bytes, reference_bytes
from golf.data.tokenizer import Pieces, load_tokenizer
from tests.data.conftest import wild_texts

T, A, C, E = tuple(OPERATORS)
tricky_text = st.text(st.one_of(st.sampled_from("aZbY1' \n\u00e9\u0130" + OPERATORS), st.characters(codec="utf-8")))


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("", ""),
        ("all lower, 1999", "all lower, 1999"),
        ("The NASA Launch", f"{T}the {A}nasa {T}launch"),
        ("iPhone OpenAI", f"i{C}phone {T}open{C}a{C}i"),
        ("McDonald's X-ray USA1", f"{T}mc{C}donald's {T}x-ray {A}usa1"),
        ("aB", f"a{C}b"),
        ("\u00c9tA", f"\u00c9t{C}a"),  # a letter beyond ASCII ends a run
        ("\u00e9A", f"\u00e9{T}a"),
        (f"{T}x{E}", f"{E}{T}x{E}{E}"),
    ],
)
def test_capitals_become_operators(text: str, encoded: str) -> None:
    assert encode(text) == encoded


@given(tricky_text)
def test_decoding_undoes_encoding(text: str) -> None:
    assert decode(encode(text)) == text


def test_decoding_undoes_encoding_of_ten_thousand_wild_texts() -> None:
    for text in wild_texts(5, 10_000):
        assert decode(encode(text)) == text


@given(tricky_text)
def test_encoded_text_has_no_ascii_capital(text: str) -> None:
    assert not any("A" <= letter <= "Z" for letter in encode(text))


@given(st.text(st.sampled_from("ab1A" + OPERATORS)))
def test_decoding_accepts_exactly_what_the_automaton_accepts(text: str) -> None:
    """The oracle walks the flags of the specification one character at a time."""
    try:
        expected = automaton(text)
    except ValueError:
        with pytest.raises(ValueError, match="malformed case operators at character"):
            decode(text)
    else:
        assert decode(text) == expected


def automaton(text: str) -> str:
    out, escape, marker, capital, caps, inside = "", False, "", False, False, False
    for letter in text:
        is_letter = letter.isascii() and letter.isalpha()
        if escape:
            out, escape = out + letter, False
        elif (
            (letter in (T, A, E) and (marker or capital)) or (letter in (T, A) and inside) or (letter == C and capital)
        ):
            raise ValueError
        elif letter == E:
            escape, inside, caps = True, False, False
        elif letter in (T, A):
            marker = letter
        elif letter == C:
            capital = True
        elif is_letter:
            caps = caps or marker == A
            out += letter.upper() if caps or capital or marker == T else letter
            marker, capital, inside = "", False, True
        elif marker or capital:
            raise ValueError
        else:
            out, inside, caps = out + letter, False, False
    if escape or marker or capital:
        raise ValueError
    return out


@pytest.mark.parametrize("text", [T, A + " x", C, "x" + E, f"ab{T}c", f"{C}{C}a", f"{T}{A}ab", T + "\u00e9"])
def test_malformed_operators_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="malformed case operators at character"):
        decode(text)


@pytest.mark.parametrize("unit", ["a", "A", "aB", "a ", "A ", T, "\u00e9"])
def test_time_is_linear_in_the_length(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    started = time.perf_counter()
    assert decode(encode(text)) == text
    assert time.perf_counter() - started < 10  # a quadratic walk over a megabyte takes hours


def test_operators_weigh_nothing_and_escaped_ones_their_bytes() -> None:
    before = bytes_before(f"{T}a\u00e9{E}{E}", is_encoded=True)
    assert np.diff(before).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]


def test_plain_text_weighs_its_own_bytes() -> None:
    assert bytes_before(f"{T}a", is_encoded=False).tolist() == [0, 1, 2, 3, 4]


def test_what_is_dropped_goes_to_the_next_token_and_at_the_end_to_the_last() -> None:
    pieces = Pieces(np.array([5, 6], np.uint16), np.array([2, 5]), np.array([4, 6]))
    before = bytes_before("..ab.c..", is_encoded=False)
    assert exact_bytes(pieces, before).tolist() == [0, 4, 4]
    assert reference_bytes(pieces, before).tolist() == [0, 2, 1]


def test_a_text_of_which_no_token_is_left_charges_the_document_start() -> None:
    pieces = Pieces(np.zeros(0, np.uint16), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert exact_bytes(pieces, bytes_before("\n\n", is_encoded=False)).tolist() == [2]


@given(tricky_text)
def test_exact_bytes_sum_to_the_utf8_length(caseops_tokenizer: Path, text: str) -> None:
    encoded = encode(text)
    pieces = load_tokenizer(caseops_tokenizer).encode_pieces(encoded)
    charged = exact_bytes(pieces, bytes_before(encoded, is_encoded=True))
    assert charged.sum() == len(text.encode())
    assert charged.min() >= 0
    assert len(charged) == 1 + len(pieces.ids)


def test_exact_bytes_of_ten_thousand_wild_texts_sum_to_the_utf8_length(caseops_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(caseops_tokenizer)
    for text in wild_texts(6, 10_000):
        encoded = encode(text)
        charged = exact_bytes(tokenizer.encode_pieces(encoded), bytes_before(encoded, is_encoded=True))
        assert (charged.sum(), charged.min() >= 0) == (len(text.encode()), True), text


def test_what_is_dropped_within_a_text_goes_to_the_token_before_it(caseops_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(caseops_tokenizer)
    kept, dropped = "7\u20ac9", "7\x1b\x07\u20ac\x7f9\x08"
    pieces = tokenizer.encode_pieces(dropped)
    assert pieces.ids.tolist() == tokenizer.encode(kept).tolist()
    assert exact_bytes(pieces, bytes_before(dropped, is_encoded=True)).tolist() == [0, 3, 0, 0, 4, 2]


def test_what_is_folded_goes_to_the_token_that_it_became_part_of(caseops_tokenizer: Path) -> None:
    """A circled 7 of three bytes and a raised 1 of two are digits."""
    tokenizer = load_tokenizer(caseops_tokenizer)
    text = "\u2466\u00b9 \n\u00a0"
    pieces = tokenizer.encode_pieces(text)
    assert pieces.ids.tolist() == tokenizer.encode("71").tolist()
    assert exact_bytes(pieces, bytes_before(text, is_encoded=True)).tolist() == [0, 3, 6]


@given(tricky_text)
def test_exact_bytes_differ_from_the_reference_only_at_the_ends(caseops_tokenizer: Path, text: str) -> None:
    encoded = encode(text)
    pieces = load_tokenizer(caseops_tokenizer).encode_pieces(encoded)
    before = bytes_before(encoded, is_encoded=True)
    exact, reference = exact_bytes(pieces, before), reference_bytes(pieces, before)
    assert exact[2:-1].tolist() == reference[2:-1].tolist()
    assert (exact >= reference).all()
