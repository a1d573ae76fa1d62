"""A folder of recorded reference data that remembers what was read from it."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safetensors.torch import load_file
from torch import Tensor


class Leaf(NamedTuple):
    """A value of a JSON file: the keys that lead to it ("[]" for any row of a list), and whether all were read."""

    path: tuple[str, ...]
    value: Any
    is_read: bool


class Entries(dict[str, Any]):
    """A JSON object that remembers which keys were read.

    Looking a key up reads it; so do items(), values(), ** and a comparison of the whole. Going over the keys does not.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.read.add(key)
        return value

    def __iter__(self) -> Iterator[str]:  # with one of its own, ** and dict() ask for each key instead of copying
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        return self.whole() == other

    def whole(self) -> dict[str, Any]:
        return {key: self[key] for key in self}

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401  # this is the .get that it asks for

    def items(self) -> Any:
        return self.whole().items()

    def values(self) -> Any:
        return self.whole().values()

    def leaves(self) -> Iterator[Leaf]:
        """Yield every value that holds no object, and every row of a list of which nothing was read."""
        return _leaves_of(self, (), True)


class Tensors(dict[str, Tensor]):
    """Recorded tensors that remember which were read; each reading gives a copy, so that no test changes another's.

    Going over the keys reads nothing. Items and values at once are refused: they would read what a filter drops.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key).clone()

    def items(self) -> NoReturn:
        raise TypeError("recorded tensors are read by key: choose the keys first, or take under(tensors, prefix)")

    def values(self) -> NoReturn:
        self.items()


class FixtureSet:
    """The recorded data of one folder, each file loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: dict[str, tuple[Entries, Tensors]] = {}
        self.paths_read: set[str] = set()

    def fixture(self, name: str) -> tuple[Entries, Tensors]:
        if name not in self.opened:
            text = (self.folder / f"{name}.json").read_text(encoding="utf-8")
            path = self.folder / f"{name}.safetensors"
            tensors = load_file(path) if path.exists() else {}
            self.opened[name] = json.loads(text, object_hook=Entries), Tensors(tensors)
        return self.opened[name]

    def path(self, name: str) -> Path:
        self.paths_read.add(name)
        return self.folder / name


@functools.cache
def fixture_set(folder: Path) -> FixtureSet:
    """Return the one object of a session for `folder`, which therefore knows what all of its tests read."""
    return FixtureSet(folder)


def read_fixture(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON and the tensors of one fixture; every key read from them is remembered."""
    return fixture_set(folder).fixture(name)


def recorded_path(folder: Path, name: str) -> Path:
    """Return the path of a recorded file that is neither JSON nor tensors, and remember that it was read."""
    return fixture_set(folder).path(name)


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose key begins with `prefix`; their names are the rest of it."""
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}


def _leaves_of(value: Any, path: tuple[str, ...], is_read: bool) -> Iterator[Leaf]:
    if isinstance(value, Entries):
        for key in value:
            yield from _leaves_of(dict.__getitem__(value, key), (*path, key), key in value.read)
    elif isinstance(value, list) and any(isinstance(row, Entries) for row in value):
        for number, row in enumerate(value):
            yield from _leaves_of(row, (*path, "[]"), is_read)
            if is_read and isinstance(row, Entries) and not row.read:
                yield Leaf((*path, f"[{number}]"), row, False)
    else:
        yield Leaf(path, value, is_read)
