"""The header is read back strictly."""

import json
from typing import Any

import pytest

from golf.artifact.header import Header, StreamLine, TensorLine, decode_header, encode_header

HEADER = Header(
    {"model": {"num_layers": 11}, "name": "pr1787"},
    [StreamLine("nibbles.4x2", 9, 4, 77), StreamLine("scale", 12, 8, 2**32 - 1)],
    [TensorLine("a", "nibbles", 6, (4, 2)), TensorLine("b", "float16", 0, ())],
)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(encode_header(HEADER)) | fields).encode()


def test_a_header_comes_back() -> None:
    assert decode_header(encode_header(HEADER)) == HEADER


def test_a_header_does_not_depend_on_the_order_of_the_recipe() -> None:
    other = Header({"name": "pr1787", "model": {"num_layers": 11}}, HEADER.streams, HEADER.tensors)
    assert encode_header(other) == encode_header(HEADER)


def test_nan_in_the_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_header(Header({"lr": float("nan")}, [], []))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"{",
        b"null",
        b'{"config":{},"streams":[]}',
        b'{"config":{},"config":{},"streams":[],"tensors":[]}',
        b'{"config":{"lr":NaN},"streams":[],"tensors":[]}',
        changed(extra=1),
        changed(config=[]),
        changed(streams={}),
        changed(streams=[["scale", 1, 2]]),
        changed(streams=[["scale", 1, 2, 3, 4]]),
        changed(streams=[["scale", 1, 2.0, 3]]),
        changed(streams=[["scale", True, 2, 3]]),
        changed(streams=[["scale", -1, 2, 3]]),
        changed(streams=[["scale", 1, 2, 3], ["scale", 1, 2, 3]]),
        changed(streams=[["scale", 1, 2, 3], ["float16", 1, 2, 3]]),
        changed(tensors=[["a", "nibbles", 6, [4, "2"]]]),
        changed(tensors=[["a", "nibbles", 6, [4, -2]]]),
        changed(tensors=[["a", "nibbles", 6, 8]]),
        changed(tensors=[["a", None, 6, [8]]]),
        changed(tensors=[["a", "nibbles", 6, [8]], ["a", "nibbles", 6, [8]]]),
        changed(tensors=["a"]),
    ],
)
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_header(data)
