import errno
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from golf.data.hub import Hub, HubFile
from golf.errors import EnvironmentUnfitError, GolfError, ResourceError, UsageError
from golf.files import sha256_bytes
from tests.data.fake_hub import REVISION, FakeHub, running

REPOSITORY = "someone/things"


@pytest.fixture
def served() -> Iterator[FakeHub]:
    with running(FakeHub(REPOSITORY, {"a/b.bin": b"hello", "list.json": b"{}"})) as hub:
        yield hub


def opened(served: FakeHub) -> Hub:
    return Hub.open(REPOSITORY, endpoint=served.endpoint, remedy="do this")


def test_a_repository_lists_its_files_with_sizes_and_digests(served: FakeHub) -> None:
    hub = opened(served)
    assert hub.revision == REVISION
    assert hub.files == {
        "a/b.bin": HubFile("a/b.bin", 5, sha256_bytes(b"hello")),
        "list.json": HubFile("list.json", 2, None),
    }


def test_a_file_comes_under_its_own_path(served: FakeHub, tmp_path: Path) -> None:
    assert opened(served).download("a/b.bin", tmp_path) == tmp_path / "a" / "b.bin"
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"hello"


def test_no_credential_is_sent(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    opened(served).download("a/b.bin", tmp_path)
    assert served.headers
    assert not any("hf_secret" in text for text in served.headers)


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (404, b"", UsageError, "not found .HTTP 404.; do this"),
        (401, b"", EnvironmentUnfitError, "may not be read without an account .HTTP 401.; do this"),
        (403, b"", EnvironmentUnfitError, "may not be read without an account .HTTP 403.; do this"),
        (500, b"", EnvironmentUnfitError, "the hub failed .HTTP 500.; do this"),
        (200, b"<html>", EnvironmentUnfitError, "the answer is not that of a hub; do this"),
        (200, b'{"siblings": []}', EnvironmentUnfitError, "the answer is not that of a hub; do this"),
    ],
)
def test_a_hub_that_fails_is_one_sentence(
    served: FakeHub, status: int, body: bytes, error: type[GolfError], message: str
) -> None:
    served.answers["info"] = (status, body)
    with pytest.raises(error, match=f"{served.endpoint}/datasets/{REPOSITORY}: .*{message}") as told:
        opened(served)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_not_found(served: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"c\.bin: not found"):
        opened(served).download("c.bin", tmp_path)


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(UsageError, match="endpoint hub is not a URL; give one like https://"):
        Hub.open(REPOSITORY, endpoint="hub", remedy="")


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "ftp://a",
        "http://",
        "https://:80",
        "http://local host:1",
        "http://a\n",
        "http://[::1",
        "http://[a]",
        "http://a:b",
    ],
)
def test_an_endpoint_that_no_client_could_ask_is_no_url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is not a URL"):
        Hub.open(REPOSITORY, endpoint=endpoint, remedy="")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)  # as of HF_ENDPOINT
    with pytest.raises(UsageError, match="is not a URL; give one like https://huggingface"):
        Hub.open(REPOSITORY, endpoint=None, remedy="")


def test_the_clients_offline_mode_is_told(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentUnfitError, match=r"offline mode.*; do this"):
        opened(served)


def test_a_full_disk_is_told(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ResourceError, match="no space left to fetch it"):
        opened(served).download("a/b.bin", tmp_path)


@pytest.mark.parametrize("endpoint", ["http://999.1.1.1", "http://\u2603.com"])
def test_an_address_that_the_client_refuses_is_one_sentence(endpoint: str) -> None:
    with pytest.raises(UsageError, match="no such address can be asked"):
        Hub.open("someone/something", endpoint=endpoint, remedy="…")
