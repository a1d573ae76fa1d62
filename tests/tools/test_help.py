"""Every command, by walking the tree: help with an example that is itself sound, and --json."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from golf.cli import cli


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below `group` that does something, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


ALL = dict(commands(cli))


def help_of(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(cli, [*words, "--help"], prog_name="golf", standalone_mode=False)
    assert result.exception is None or result.exit_code == 0, result.output
    return result.output


def examples(text: str) -> list[str]:
    """The command lines after "Example:" or "Examples:", which are separated by a dot in the middle."""
    _, _, after = " ".join(text.split()).partition("Example")
    lines = re.split(r" · ", re.sub(r"^s?: ", "", after).partition(" Options:")[0])
    return [line.strip() for line in lines]


def test_the_tree_has_all_commands() -> None:
    assert {" ".join(words) for words in ALL} >= {
        "data audit",
        "data demo",
        "data prepare",
        "demo",
        "evaluate",
        "inspect",
        "recipe list",
        "recipe show",
        "requant",
        "train",
    }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_help_has_an_example_of_the_command_that_it_would_accept(words: tuple[str, ...]) -> None:
    found = examples(help_of(words))
    assert found
    for line in found:
        program, *rest = shlex.split(line)
        assert program == "golf"
        assert tuple(rest[: len(words)]) == words
        ALL[words].make_context(words[-1], rest[len(words) :], resilient_parsing=False)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_result_can_be_had_as_json(words: tuple[str, ...]) -> None:
    assert "--json" in [name for parameter in ALL[words].params for name in parameter.opts]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_is_explained_or_shows_its_default(words: tuple[str, ...]) -> None:
    for parameter in ALL[words].params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.show_default, parameter.name


@pytest.mark.parametrize("group", ["data", "recipe"])
def test_a_group_has_an_example_too(group: str) -> None:
    assert f"Example: golf {group} " in " ".join(help_of((group,)).split())


@pytest.mark.parametrize("group", ["data", "recipe"])
def test_a_group_tells_of_each_command_in_full(group: str) -> None:
    assert "..." not in help_of((group,)).partition("Commands:")[2]


def test_the_help_of_golf_itself_has_examples_of_commands_that_would_accept_them() -> None:
    found = [shlex.split(line) for line in examples(help_of(()))]
    assert len(found) > 1
    for program, name, *rest in found:
        assert program == "golf"
        ALL[(name,)].make_context(name, rest, resilient_parsing=False)
