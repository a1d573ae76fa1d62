"""The artifact file: exact, deterministic, and deaf to anything else."""

import hashlib
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from golf.artifact.codecs import CODECS, compress
from golf.artifact.container import (
    HEADER_CAP,
    Artifact,
    describe_bytes,
    load_artifact,
    pack_bytes,
    save_artifact,
    unpack_bytes,
)
from golf.errors import BadFileError, NumericalFaultError, UsageError
from golf.model.parts.ternary import ternarize
from golf.quant.primitives import absmax_scale, levels_of, quantize
from golf.quant.scheme import QuantizedTensor, Stored
from golf.quant.ternary import TernaryTensor

CONFIG = {"name": "demo", "model": {"num_layers": 2, "model_dim": 8}, "lr": 0.02, "tags": ["a", None, True]}


def quantized(shape: tuple[int, ...], *, bits: int = 6, seed: int = 0, spread: float = 0.05) -> QuantizedTensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(spread).reshape(-1, shape[-1])
    scale = absmax_scale(weight, levels=levels_of(bits))
    return QuantizedTensor(codes=quantize(weight, scale, levels_of(bits)), scale=scale, bits=bits, shape=shape)


def ternary() -> TernaryTensor:
    codes, scale = ternarize(torch.randn(3, 8, generator=torch.Generator().manual_seed(5)), 4)
    return TernaryTensor(codes=codes, scale=scale)


def small_model() -> dict[str, Stored]:
    return {
        "blocks.0.mlp.fc.weight": quantized((16, 8)),
        "blocks.1.mlp.fc.weight": quantized((16, 8), seed=1),
        "blocks.0.gate.weight": quantized((3, 5), bits=8),
        "blocks.0.turned.weight": replace(quantized((4, 6)), rotated=True),
        "blocks.0.ternary.weight": ternary(),
        "tok_emb.weight": quantized((7, 3), bits=7),
        "blocks.0.resid_mix": torch.linspace(-1, 1, 16).half().reshape(2, 8),
        "skip": torch.tensor(0.5),
    }


def assert_equal(one: Stored, other: Stored) -> None:
    if isinstance(one, QuantizedTensor):
        assert isinstance(other, QuantizedTensor)
        assert (one.bits, one.shape, one.rotated) == (other.bits, other.shape, other.rotated)
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)
    elif isinstance(one, TernaryTensor):
        assert isinstance(other, TernaryTensor)
        assert one.scale.dtype == other.scale.dtype
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)
    else:
        assert isinstance(other, Tensor)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def resigned(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def forged(header: Any, streams: bytes = b"", *, size: int | None = None, codec: str = "raw") -> bytes:
    """Return a file with a digest that is right and a header that need not be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    stored = compress(codec, text)
    prefix = struct.pack("<4sH8sII", b"GOLF", 1, codec.encode(), len(stored), len(text) if size is None else size)
    return resigned(prefix + stored + streams + bytes(32))


@pytest.mark.parametrize("codec", CODECS)
def test_tensors_and_config_come_back_exactly(codec: str) -> None:
    read = unpack_bytes(pack_bytes(small_model(), config=CONFIG, codec=codec))
    assert read.config == CONFIG
    assert list(read.tensors) == sorted(small_model())
    for name, tensor in small_model().items():
        assert_equal(tensor, read.tensors[name])


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 8),
    st.lists(st.integers(1, 7), min_size=1, max_size=3),
    st.sampled_from([0.0, 1e-44, 1e-7, 1.0, 1e4]),
    st.integers(0, 2**32),
)
def test_any_width_shape_and_magnitude_comes_back(bits: int, sizes: list[int], spread: float, seed: int) -> None:
    tensor = quantized(tuple(sizes), bits=bits, seed=seed, spread=spread)
    denormal = (tensor.dequantize() * 2**-120).flatten()
    read = unpack_bytes(pack_bytes({"w": tensor, "d": denormal}, config={}, codec="zlib")).tensors
    assert_equal(tensor, read["w"])
    assert_equal(denormal, read["d"])


def test_an_empty_model_comes_back() -> None:
    assert unpack_bytes(pack_bytes({}, config={}, codec="brotli")) == Artifact({}, {})


def test_the_order_of_tensors_and_settings_does_not_change_the_bytes() -> None:
    tensors = dict(reversed(small_model().items()))
    config = dict(reversed(CONFIG.items()))
    assert pack_bytes(tensors, config=config, codec="brotli") == pack_bytes(
        small_model(), config=CONFIG, codec="brotli"
    )


def test_a_fresh_process_gives_the_same_bytes() -> None:
    code = (
        "from tests.artifact.test_container import *\n"
        "print(hashlib.sha256(pack_bytes(small_model(), config=CONFIG, codec='brotli')).hexdigest())"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert told.strip() == hashlib.sha256(pack_bytes(small_model(), config=CONFIG, codec="brotli")).hexdigest()


def test_noncontiguous_codes_are_stored_as_they_read() -> None:
    tensor = quantized((6, 4))
    turned = QuantizedTensor(codes=tensor.codes.T.contiguous().T, scale=tensor.scale, bits=6, shape=(6, 4))
    assert pack_bytes({"w": turned}, config={}, codec="raw") == pack_bytes({"w": tensor}, config={}, codec="raw")


def test_a_saved_file_is_the_packed_bytes(tmp_path: Path) -> None:
    save_artifact(tmp_path / "model.golf", small_model(), config=CONFIG, codec="brotli")
    assert (tmp_path / "model.golf").read_bytes() == pack_bytes(small_model(), config=CONFIG, codec="brotli")


def test_a_saved_file_loads(tmp_path: Path) -> None:
    save_artifact(tmp_path / "model.golf", small_model(), config=CONFIG, codec="brotli")
    assert load_artifact(tmp_path / "model.golf").config == CONFIG


def test_info_counts_every_byte(tmp_path: Path) -> None:
    info = save_artifact(tmp_path / "model.golf", small_model(), config=CONFIG, codec="brotli")
    data = (tmp_path / "model.golf").read_bytes()
    assert info.bytes == len(data) == sum(info.group_bytes.values()) == sum(info.tensor_bytes.values())
    assert info.sha256 == hashlib.sha256(data).hexdigest()


def test_info_divides_streams_among_their_tensors_by_entropy() -> None:
    plain = QuantizedTensor(
        codes=torch.zeros(64, 64, dtype=torch.int8), scale=torch.ones(64).half(), bits=6, shape=(64, 64)
    )
    info = describe_bytes(pack_bytes({"noise": quantized((64, 64)), "plain": plain}, config={}, codec="brotli"))
    assert info.tensor_bytes["noise"] > 20 * info.tensor_bytes["plain"] > 0
    assert info.tensor_bytes.keys() == {"header", "noise", "plain"}


def test_truncation_at_every_byte_is_refused() -> None:
    data = pack_bytes(small_model(), config=CONFIG, codec="brotli")
    for length in range(len(data)):
        with pytest.raises(BadFileError):
            unpack_bytes(data[:length])


def test_every_flipped_byte_is_refused() -> None:
    data = pack_bytes(small_model(), config=CONFIG, codec="brotli")
    for position in range(len(data)):
        with pytest.raises(BadFileError):
            unpack_bytes(data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :])


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(BadFileError, match="digest"):
        unpack_bytes(pack_bytes(small_model(), config=CONFIG, codec="brotli") + b"\0")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_under_a_right_digest_is_refused_or_harmless(data: st.DataObject) -> None:
    """What a forger can write is never more than a BadFileError; the digest guards against accidents only."""
    body = bytearray(pack_bytes(small_model(), config=CONFIG, codec=data.draw(st.sampled_from(["raw", "zlib"]))))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 33))] = data.draw(st.integers(0, 255))
    try:
        read = unpack_bytes(resigned(bytes(body)))
    except BadFileError:
        return
    assert all(
        bool(value.dequantize().isfinite().all()) for value in read.tensors.values() if not isinstance(value, Tensor)
    )


EMPTY: dict[str, Any] = {"config": {}, "streams": [], "tensors": []}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a golf artifact"),
        (b"PK\x03\x04" + bytes(100), "not a golf artifact"),
        (b"GOLF", "truncated"),
        (b"GOLF\x02\x00" + bytes(100), "version 2, and this golf reads version 1"),
        (forged(EMPTY, codec="raw").replace(b"raw", b"zip"), "digest"),
        (resigned(forged(EMPTY).replace(b"raw", b"zip")), "unknown codec 'zip'"),
        (resigned(forged(EMPTY).replace(b"raw", b"\xff\xffw")), "codec can't decode"),
        (forged(EMPTY, size=HEADER_CAP + 1), "declares a header of"),
        (forged(EMPTY, size=1), "more than the 1 bytes"),
        (forged(EMPTY, b"rest"), "do not add up"),
        (forged(b"[" * 100_000), "recursion"),
        (forged(EMPTY | {"streams": [["bytes.1x1", 1, 1, 0]]}, b"a"), "checksum"),
        (forged(EMPTY | {"streams": [["bytes.1x1", 1, 1, 0xE8B7BE43]]}, b"a"), "more than its tensors need"),
        (forged(EMPTY | {"streams": [["bytes.1x1", 0, 2**40, 0]]}), "more than 268435456"),
        (forged(EMPTY | {"tensors": [["a", "bytes", 8, [1, 1]]]}), "stream bytes.1x1 is missing"),
    ],
)
def test_a_foreign_or_forged_file_is_refused_with_the_reason(data: bytes, told: str) -> None:
    with pytest.raises(BadFileError, match=told):
        unpack_bytes(data)


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.golf").write_bytes(b"hello")
    with pytest.raises(BadFileError, match=r"model\.golf: not a golf artifact"):
        load_artifact(tmp_path / "model.golf")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None])
def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "model.golf")
    with pytest.raises(BadFileError, match="cannot be read"):
        load_artifact(tmp_path / "model.golf")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "model.golf").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BadFileError, match="larger than"):
        load_artifact(tmp_path / "model.golf")


def test_a_number_that_is_not_finite_is_never_stored() -> None:
    with pytest.raises(NumericalFaultError, match=r"blocks\.0\.gain"):
        pack_bytes({"blocks.0.gain": torch.tensor([1e6]).half()}, config={}, codec="raw")


@pytest.mark.parametrize(
    ("name", "tensor"), [("../w", torch.ones(1)), ("w", torch.ones(1).double()), ("w", torch.ones(0))]
)
def test_what_cannot_be_stored_is_a_usage_error(name: str, tensor: Tensor) -> None:
    with pytest.raises(UsageError, match="cannot store"):
        pack_bytes({name: tensor}, config={}, codec="raw")


def test_an_unknown_codec_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no codec"):
        pack_bytes(small_model(), config={}, codec="rar")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "model.golf").write_bytes(b"old")
    with pytest.raises(NumericalFaultError):
        save_artifact(tmp_path / "model.golf", {"w": torch.tensor([torch.nan])}, config={}, codec="raw")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
