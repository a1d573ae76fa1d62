import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from golf.data.texts import find_inputs, read_documents
from golf.errors import BadFileError, UsageError

LINES = b'{"text": "one"}\n\n{"text": "caf\\u00e9", "src": "x"}\r\n{"text": ""}'


def texts_of(*paths: Path) -> list[str]:
    return [document.text for document in read_documents(find_inputs(paths))]


def test_json_lines_read_the_same_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(LINES))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    for name in ("a.jsonl", "a.jsonl.xz", "a.jsonl.gz"):
        assert texts_of(tmp_path / name) == ["one", "café", ""]


def test_a_document_knows_its_line_and_size(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    documents = list(read_documents([tmp_path / "a.jsonl"]))
    assert [(document.line, document.utf8_bytes) for document in documents] == [(1, 3), (3, 5), (4, 0)]


def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a\r\nb\rü\n".encode())
    assert texts_of(tmp_path / "a.txt") == ["a\r\nb\rü\n"]


def test_a_folder_stands_for_its_text_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c/d.jsonl", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": 1}')
    assert [path.relative_to(tmp_path).as_posix() for path in find_inputs([tmp_path])] == [
        "a/c/d.jsonl",
        "a/z.txt",
        "b.txt",
    ]


@pytest.mark.parametrize("again", ["a.txt", "../texts/a.txt", ".", "link.txt"])
def test_a_file_that_comes_twice_is_refused(tmp_path: Path, again: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    (tmp_path / "link.txt").symlink_to(folder / "a.txt")
    second = tmp_path / again if again == "link.txt" else folder / again
    with pytest.raises(UsageError, match=r"\.txt is among the inputs twice"):
        find_inputs([folder / "a.txt", second])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: it is not valid JSON"),
        ("\udcff", "line 2: it is not valid JSON"),
        ("[" * 100_000, "line 2: it is not valid JSON"),
        ('["text"]', 'line 2: it is not an object with a string "text"'),
        ('{"txt": "a"}', 'line 2: it is not an object with a string "text"'),
        ('{"text": 5}', 'line 2: it is not an object with a string "text"'),
        ('{"text": null}', 'line 2: it is not an object with a string "text"'),
        ('{"text": "\\ud83d"}', "line 2: its text holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line.encode(errors="surrogateescape"))
    with pytest.raises(BadFileError, match=reason):
        texts_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("name", "compress"), [("a.jsonl.xz", lzma.compress), ("a.jsonl.gz", gzip.compress)])
def test_a_truncated_archive_is_named(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(json.dumps({"text": "x"}).encode() * 50)
    for data in (whole[: len(whole) // 2], b"junk" + whole):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadFileError, match=f"{name}: it cannot be read to its end"):
            texts_of(tmp_path / name)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadFileError, match=r"it is not UTF-8 \(unexpected end of data at byte 3\)"):
        texts_of(tmp_path / "a.txt")


def test_unknown_missing_and_empty_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(BadFileError, match="not a known kind of text file"):
        find_inputs([tmp_path / "a.csv"])
    with pytest.raises(BadFileError, match="no such file"):
        find_inputs([tmp_path / "b.jsonl"])
    with pytest.raises(BadFileError, match="no text file in it"):
        find_inputs([tmp_path])
