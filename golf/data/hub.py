"""The model hub, as far as data is fetched from it: one revision of one data set's repository.

The only file that imports the hub's client, and only when it is used: importing it costs a second. No credential is
sent, since the data is public and an endpoint may be anybody's mirror.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from golf.errors import EnvironmentUnfitError, GolfError, ResourceError, UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING, _REFUSED = (404, 410), (401, 403)


class HubFile(NamedTuple):
    """A file of a repository."""

    path: str
    bytes: int
    sha256: str | None  # None for a small file that the repository keeps in git itself


@dataclass(frozen=True, slots=True, eq=False)
class Hub:
    """A repository at the revision that was current when it was opened, with all its files."""

    repository: str
    endpoint: str
    revision: str
    files: dict[str, HubFile]  # by path
    remedy: str  # what a user can do when the hub cannot be used

    @classmethod
    def open(cls, repository: str, *, endpoint: str | None, remedy: str) -> "Hub":
        """Ask for the repository's revision and files, at huggingface.co (or HF_ENDPOINT) without an `endpoint`.

        Raises UsageError for an endpoint that is no URL. Ending in `remedy`, raises UsageError for a repository that is
        not there and EnvironmentUnfitError for a hub that cannot be used.
        """
        from huggingface_hub import HfApi, constants

        # Plain HTTP, for the other protocol caches what it transfers; and nothing about this machine in the requests.
        constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_TELEMETRY = True
        endpoint = constants.ENDPOINT if endpoint is None else endpoint
        if not _is_url(endpoint):
            raise UsageError(f"endpoint {endpoint} is not a URL; give one like https://huggingface.co")
        api = HfApi(endpoint=endpoint, token=False)
        with _failures_told(f"{api.endpoint}/datasets/{repository}", remedy):
            info = api.dataset_info(repository, files_metadata=True, timeout=30)
            found = info.siblings or []
            files = [HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in found]
            return cls(repository, api.endpoint, info.sha or "main", {file.path: file for file in files}, remedy)

    def download(self, path: str, folder: Path) -> Path:
        """Fetch one file to `folder` / `path`; a transfer that breaks is taken up behind its last 10 MB, five times.

        A file that came from this revision before is returned as it is, unread.
        """
        from huggingface_hub import hf_hub_download

        with _failures_told(f"{self.endpoint}/datasets/{self.repository}: {path}", self.remedy):
            return Path(
                hf_hub_download(
                    self.repository,
                    path,
                    repo_type="dataset",
                    revision=self.revision,
                    endpoint=self.endpoint,
                    local_dir=folder,
                    token=False,
                )
            )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # ValueError unless it is a number up to 65,535
    except ValueError:
        return False
    is_one_word = text.isprintable() and " " not in text
    return is_one_word and parts.scheme in ("http", "https") and bool(parts.hostname)


@contextmanager
def _failures_told(where: str, remedy: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        yield
    except HfHubHTTPError as error:
        raise _status_told(error.response.status_code, where, remedy) from error
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(f"{where}: no space left to fetch it; free some and run again") from error
        raise _unreachable(error, where, remedy) from error
    except HTTPError as error:
        raise _unreachable(error, where, remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentUnfitError(f"{where}: the answer is not that of a hub; {remedy}") from error
    except Exception as error:
        if type(error).__name__ != "InvalidURL":  # of a library that huggingface_hub imports, by a name that it changes
            raise
        raise UsageError(f"{where}: no such address can be asked; give one like https://huggingface.co") from error


def _status_told(status: int, where: str, remedy: str) -> GolfError:
    if status in _MISSING:
        return UsageError(f"{where}: not found (HTTP {status}); {remedy}")
    reason = "it may not be read without an account" if status in _REFUSED else "the hub failed"
    return EnvironmentUnfitError(f"{where}: {reason} (HTTP {status}); {remedy}")


def _unreachable(error: Exception, where: str, remedy: str) -> EnvironmentUnfitError:
    cause = error.__cause__ or error
    detail = str(cause).partition("\n")[0] or type(cause).__name__
    return EnvironmentUnfitError(f"{where}: cannot be reached or read to its end ({detail}); {remedy}")
