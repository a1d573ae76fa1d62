"""golf data: what its options refuse and say of themselves; what the commands do is tested in tests/data."""

import click
import pytest

from golf.cli import cli
from tests.session_tools import golf
from tests.tools.test_help import commands

COMMANDS = {words[1]: command for words, command in commands(cli) if words[0] == "data"}


def help_of(name: str, option: str) -> str:
    found = [one for one in COMMANDS[name].params if isinstance(one, click.Option) and option in one.opts]
    return found[0].help or ""


@pytest.mark.parametrize("option", ["--limit", "--val-docs", "--shard-tokens"])
@pytest.mark.parametrize("count", ["-3", "0"])
def test_a_count_below_one_is_refused_by_its_name(capsys: pytest.CaptureFixture[str], option: str, count: str) -> None:
    said = golf(capsys, "data", "prepare", "a.txt", "--tokenizer", "t.model", "--out", "out", option, count)
    assert said.code == 2
    assert f"Invalid value for '{option}'" in said.err


def test_an_endpoint_that_is_no_url_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "data", "fetch", "sp1024", "--endpoint", "http://[::1")
    assert said.code == 2
    assert "endpoint http://[::1 is not a URL" in said.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [option for option in COMMANDS[name].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_two_ways_to_split_say_that_they_exclude_each_other() -> None:
    assert "excludes --val-fraction" in help_of("prepare", "--val-docs")
    assert "excludes --val-docs" in help_of("prepare", "--val-fraction")


def test_the_default_endpoint_names_the_variable_that_sets_it() -> None:
    assert "[default: $HF_ENDPOINT, or https://huggingface.co]" in help_of("fetch", "--endpoint")
