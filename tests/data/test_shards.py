import json
from pathlib import Path

import numpy as np
import pytest

from golf.data.shards import Dataset, read_shard, write_shard
from golf.errors import BadFileError


def write_folder(folder: Path, **shards: list[int]) -> Path:
    folder.mkdir(exist_ok=True)
    for stem, tokens in shards.items():
        write_shard(folder / f"{stem}.bin", np.array(tokens))
    return folder


@pytest.mark.parametrize("count", [0, 1, 423])
def test_a_shard_reads_back_what_was_written(tmp_path: Path, count: int) -> None:
    tokens = np.arange(65536 - count, 65536)
    write_shard(tmp_path / "a.bin", tokens)
    assert read_shard(tmp_path / "a.bin").tolist() == tokens.tolist()


def test_the_container_is_256_words_and_little_endian_tokens(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 0x0203]))
    data = (tmp_path / "a.bin").read_bytes()
    assert data == b"\x88\xd8\x34\x01" + b"\x01\0\0\0" + b"\x02\0\0\0" + bytes(1012) + b"\x01\x00\x03\x02"


def test_a_mapped_shard_is_read_only(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 2]))
    with pytest.raises(ValueError, match="read-only"):
        read_shard(tmp_path / "a.bin")[0] = 5


@pytest.mark.parametrize("tokens", [[-1], [65536]])
def test_a_value_that_does_not_fit_is_not_written(tmp_path: Path, tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="a shard holds 0 to 65535"):
        write_shard(tmp_path / "a.bin", np.array(tokens))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"a\.bin: it cannot be read \(No such file"):
        read_shard(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it has 0 bytes, less than a shard's header"),
        (bytes(1023), "it has 1023 bytes, less than"),
        (b"GGUF" * 500, "it is not a token shard"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(BadFileError, match=reason):
        read_shard(tmp_path / "a.bin")


def test_a_shard_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(10))
    whole = (tmp_path / "a.bin").read_bytes()
    for data in (whole[:-1], whole[:-2], whole + b"\0\0"):
        (tmp_path / "a.bin").write_bytes(data)
        with pytest.raises(BadFileError, match="its header promises 10 tokens"):
            read_shard(tmp_path / "a.bin")


def test_every_flipped_header_bit_is_noticed(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.arange(10))
    whole = (tmp_path / "a.bin").read_bytes()
    for bit in range(96):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.bin").write_bytes(flipped)
        with pytest.raises(BadFileError):
            read_shard(tmp_path / "a.bin")


def test_shards_are_found_by_their_full_names(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        fineweb_val_bytes_000000=[0, 3],
        fineweb_val_000000=[1, 2],
        fineweb_train_000001=[4],
        fineweb_train_000000=[3],
        fineweb_train_1=[9],
        fineweb_val_000000_old=[9],
    )
    dataset = Dataset.open(folder)
    assert [path.name for path in dataset.train] == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    assert [path.name for path in dataset.val] == ["fineweb_val_000000.bin"]
    assert [path.name for path in dataset.val_sidecars] == ["fineweb_val_bytes_000000.bin"]


def test_the_validation_stream_joins_its_shards(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path, a_val_000000=[1, 2], a_val_000001=[3], a_val_bytes_000000=[0, 5], a_val_bytes_000001=[6]
    )
    dataset = Dataset.open(folder)
    val_bytes = dataset.val_bytes()
    assert dataset.val_tokens().tolist() == [1, 2, 3]
    assert val_bytes is not None
    assert val_bytes.tolist() == [0, 5, 6]


def test_a_folder_without_sidecar_has_no_bytes(tmp_path: Path) -> None:
    assert Dataset.open(write_folder(tmp_path, a_val_000000=[1])).val_bytes() is None


def test_asking_for_a_missing_validation_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="holds no validation shard"):
        Dataset.open(write_folder(tmp_path, a_train_000000=[1])).val_tokens()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="no such folder"):
        Dataset.open(tmp_path / "nowhere")


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.bin").write_bytes(b"")
    with pytest.raises(BadFileError, match="it holds no shards"):
        Dataset.open(tmp_path)


def test_a_file_with_a_leading_dot_is_no_shard(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_train_000000=[1])
    (folder / ".golf-tmp-1-ab-a_train_000001.bin").write_bytes(b"half")
    assert Dataset.open(folder).train == (folder / "a_train_000000.bin",)


def test_a_gap_in_the_numbers_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_train_000000=[1], a_train_000002=[1])
    with pytest.raises(BadFileError, match=r"a_train_000001\.bin: it is missing"):
        Dataset.open(folder)


def test_two_data_sets_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_train_000000=[1], b_train_000001=[1])
    with pytest.raises(BadFileError, match="mixes the data sets a, b"):
        Dataset.open(folder)


def test_a_sidecar_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_val_000000=[1, 2, 3], a_val_bytes_000000=[0, 1])
    with pytest.raises(BadFileError, match="2 entries for 3 validation tokens"):
        Dataset.open(folder)


def test_a_damaged_shard_is_noticed_on_opening(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_train_000000=[1], a_train_000001=[1, 2])
    (folder / "a_train_000001.bin").write_bytes((folder / "a_train_000001.bin").read_bytes()[:-1])
    with pytest.raises(BadFileError, match=r"a_train_000001\.bin: its header promises"):
        Dataset.open(folder)


def test_our_own_shards_without_manifest_are_unfinished(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="it is unfinished"):
        Dataset.open(write_folder(tmp_path, golf_train_000000=[1]))


def test_a_published_folder_with_another_manifest_opens(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, fineweb_train_000000=[1])
    (folder / "manifest.json").write_text(json.dumps({"datasets": []}))
    assert Dataset.open(folder).manifest is None


def test_the_tokenizer_beside_the_shards_gives_vocabulary_and_start(tmp_path: Path, plain_tokenizer: Path) -> None:
    folder = write_folder(tmp_path, a_train_000000=[1])
    (folder / "plain.model").write_bytes(plain_tokenizer.read_bytes())
    dataset = Dataset.open(folder)
    assert dataset.tokenizer == folder / "plain.model"
    assert dataset.vocab_size is not None
    assert dataset.vocab_size > 256
    assert dataset.bos_id == 1


def test_two_tokenizers_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_train_000000=[1])
    for name in ("a.model", "b.model"):
        (folder / name).write_bytes(b"")
    with pytest.raises(BadFileError, match=r"b\.model: a second tokenizer beside a\.model"):
        Dataset.open(folder)


def test_a_token_outside_the_vocabulary_names_its_shard(tmp_path: Path) -> None:
    dataset = Dataset.open(write_folder(tmp_path, a_train_000000=[5], a_train_000001=[64], a_val_000000=[5]))
    dataset.check_vocab(65)
    with pytest.raises(BadFileError, match=r"a_train_000001\.bin: it holds token id 64"):
        dataset.check_vocab(64)


def test_the_digest_follows_names_and_sizes_but_not_the_folder(tmp_path: Path) -> None:
    folders = [
        write_folder(tmp_path / "a", x_train_000000=[1, 2], x_val_000000=[3]),
        write_folder(tmp_path / "b", x_train_000000=[1, 2], x_val_000000=[3]),
        write_folder(tmp_path / "c", x_train_000000=[1, 2, 3], x_val_000000=[3]),
        write_folder(tmp_path / "d", y_train_000000=[1, 2], y_val_000000=[3]),
    ]
    digests = [Dataset.open(folder).digest() for folder in folders]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
