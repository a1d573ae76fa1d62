"""Codecs: each is really run, and a wrong result is seen."""

import pytest

from golf.doctor import codecs as under_test
from golf.doctor.codecs import check_codec


@pytest.mark.parametrize("codec", ["zstd", "lzma"])  # brotli takes a second; golf doctor's own test runs it
def test_a_megabyte_goes_there_and_back(codec: str) -> None:
    check = check_codec(codec)
    assert (check.name, check.verdict) == (f"codec {codec}", "ok")
    before, _, after = check.value.partition(" bytes to ")
    packed = int(after.split(" and ")[0].replace(",", ""))
    assert before == "1,000,000"
    assert 0.3e6 < packed < 0.36e6  # the codes have 2.54 bits each: a compressor comes close, a copy does not


def test_bytes_that_come_back_changed_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "compress", lambda codec, data: data)
    monkeypatch.setattr(under_test, "decompress", lambda codec, data, size: data[:-1] + b"\x09")
    assert check_codec("lzma").verdict == "fail"
