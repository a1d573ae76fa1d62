"""Documents of text, streamed from JSON lines and text files."""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from golf.errors import BadFileError, UsageError

SUFFIXES = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".txt")


class Document(NamedTuple):
    """One text and where it came from."""

    text: str
    utf8_bytes: int
    path: Path
    line: int  # from 1; 1 for a text file


def find_inputs(inputs: Sequence[Path]) -> list[Path]:
    """Return the files to read, in order; a folder stands for all its text files, sorted by path.

    Raises BadFileError for a path that is missing, of another type, or a folder without a text file, and UsageError for
    a file that comes twice, by whatever path: its documents would count twice.
    """
    files = [file for path in inputs for file in _files_of(path)]
    seen = set()
    for file in files:
        if (real := file.resolve()) in seen:
            raise UsageError(f"{file} is among the inputs twice; name each file once")
        seen.add(real)
    return files


def read_documents(files: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents of `files` in order, empty ones too: the "text" of each JSON line, each text file whole.

    Raises BadFileError, with the line, for what is not valid JSON, has no text, or is not Unicode.
    """
    for path in files:
        try:
            yield from _read_text(path) if path.name.endswith(".txt") else _read_lines(path)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise BadFileError(path, f"it cannot be read to its end ({error})", "fetch or restore it") from None


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        if not files:
            raise BadFileError(path, f"no text file in it ({' '.join(SUFFIXES)})", "check the folder")
        return files
    if not path.exists():
        raise BadFileError(path, "no such file", "check the path")
    if not path.name.endswith(SUFFIXES):
        raise BadFileError(path, "not a known kind of text file", f"give one of {' '.join(SUFFIXES)}")
    return [path]


def _read_text(path: Path) -> Iterator[Document]:
    data = path.read_bytes()
    try:
        yield Document(data.decode(), len(data), path, 1)
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"it is not UTF-8 ({error.reason} at byte {error.start})", "convert it") from None


def _read_lines(path: Path) -> Iterator[Document]:
    with _open_lines(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse_line(line, path, number)


def _open_lines(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _parse_line(line: bytes, path: Path, number: int) -> Document:
    try:
        text = json.loads(line)["text"]
        return Document(text, len(text.encode()), path, number)
    except UnicodeEncodeError:
        reason = "its text holds half of a surrogate pair"
    except (ValueError, RecursionError):
        reason = "it is not valid JSON"
    except (KeyError, TypeError, AttributeError):
        reason = 'it is not an object with a string "text"'
    raise BadFileError(path, f"line {number}: {reason}", "repair or remove the line")
