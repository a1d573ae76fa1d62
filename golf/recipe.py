"""Read recipes: strict TOML with one parent (`extends`) and `table.key=value` overrides.

Unknown keys and wrong types are errors that name what is allowed.
"""

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from golf.config import Recipe
from golf.errors import UsageError

_Table = TypeVar("_Table")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a shipped recipe by name or a TOML file by path, then apply `table.key=value` overrides.

    Raises UsageError naming the file, the valid keys for an unknown one, and the reason for a contradiction.
    """
    values = _override(_read(name_or_path), overrides)
    try:
        return recipe_from_dict(values)
    except UsageError as error:
        if Path(name_or_path).suffix != ".toml":
            raise
        raise UsageError(f"{name_or_path}{' with --set' if overrides else ''}: {error}") from None


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """Build a recipe from plain nested values, as TOML gives them or `Recipe.to_dict` wrote them."""
    return _build(Recipe, values, "")


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return `recipe` with `table.key=value` overrides applied."""
    return recipe_from_dict(_override(recipe.to_dict(), overrides))


def compute_otherwise(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return `recipe` with `run.key=value` overrides, which say how a model computes and not what it is.

    Raises UsageError for a change of anything else.
    """
    changed = override_recipe(recipe, overrides)
    if dataclasses.replace(changed, run=recipe.run) != recipe:
        raise UsageError("only run.… can be --set for weights that are there; the rest is what they were trained as")
    return changed


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    found = resources.files("golf.recipes").iterdir()
    return sorted(item.name.removesuffix(".toml") for item in found if item.name.endswith(".toml"))


def _read(name_or_path: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a recipe and merge it over its ancestors."""
    path = Path(name_or_path)
    label = str(path.resolve() if path.suffix == ".toml" else path)  # one file has many spellings
    if label in seen:
        raise UsageError(f"recipe {label} extends itself: {' -> '.join([*seen, label])}")
    values = _read_one(name_or_path, f"{seen[-1]}: extends: " if seen else "")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UsageError(f"{name_or_path}: extends must name one recipe, not {parent!r}")
    if parent.endswith(".toml") and path.suffix == ".toml":
        parent = path.parent / parent
    return _merge(_read(parent, (*seen, label)), values)


def _read_one(name_or_path: str | Path, child: str) -> dict[str, Any]:
    """Parse one TOML; `child` begins the sentence when a recipe that extends it names nothing."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"{child}no recipe file {path}; shipped recipes: {', '.join(recipe_names())}")
        data = path.read_bytes()
    else:
        if str(name_or_path) not in recipe_names():
            raise UsageError(f"{child}no recipe {name_or_path!r}{_suggest(str(name_or_path), recipe_names())}")
        data = (resources.files("golf.recipes") / f"{name_or_path}.toml").read_bytes()
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:  # of either step
        raise UsageError(f"{name_or_path}: not valid TOML: {error}") from None


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise UsageError(f"--set {override}: write table.key=value, for example model.num_layers=3")
        if keys[0] == "extends":
            raise UsageError(f"--set {override}: extends belongs in a recipe file; name the parent there")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()  # a bare word is a string
        for key in reversed(keys):
            value = {key: value}
        values = _merge(values, value)
    return values


def _build(cls: type[_Table], values: dict[str, Any], where: str) -> _Table:
    """Make the dataclass `cls` from a TOML table; `where` is its dotted path with a trailing dot."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    hints = get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UsageError(f"unknown key {where}{key}{_suggest(key, list(fields))}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UsageError(f"missing key {where}{name}")
    return cls(**{key: _convert(hints[key], value, where + key) for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a field's type and convert tables, lists and whole-number floats."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is False else _convert(inner, value, where)  # false switches a part off
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UsageError(f"{where} is a table; set one of its keys, for example {where}.{_first_key(hint)}=…")
        return _build(hint, value, where + ".")  # type: ignore[arg-type]  # hint is a dataclass type
    if origin is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where} must be one of {', '.join(map(repr, get_args(hint)))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where} must be a list, not {value!r}")
        return tuple(_convert(get_args(hint)[0], item, where) for item in value)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UsageError(f"{where} must be of type {hint.__name__}, not {value!r}")
    if hint is float and not math.isfinite(value):
        raise UsageError(f"{where} must be a finite number, not {value!r}")
    return value


def _first_key(hint: Any) -> str:
    return dataclasses.fields(hint)[0].name


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"{guess} (known: {', '.join(known)})"
