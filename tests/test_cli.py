"""The command shell: commands found by file name, failures told in one sentence with their exit code."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from golf.cli import Tools, echo_json, force_option, json_option, out_option, set_option

FAIL = '''"""Fail in the way that is asked for.

More about it, which the list of commands does not show.
"""
import errno
import click
import torch
from golf import errors
from golf.cli import echo_json, json_option

class OutOfMemoryError(RuntimeError):
    """As torch names its own."""

FAILURES = {
    "gate": errors.GolfError("said no"),
    "usage": errors.UsageError("no such recipe"),
    "file": errors.BadFileError("x.bin", "is short", "fetch it again"),
    "place": errors.EnvironmentUnfitError("no brotli"),
    "disk": errors.ResourceError("disk full"),
    "number": errors.NumericalFaultError("loss is nan"),
    "rank": errors.WorkerDiedError("rank 3 died"),
    "memory": MemoryError("40 GB"),
    "cuda": OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\\nAnd much more"),
    "stop": KeyboardInterrupt(),
    "end": EOFError("short stream"),
    "bug": ZeroDivisionError("division by zero"),
    "pipe": BrokenPipeError(errno.EPIPE, "of a worker, not of stdout"),
}

@click.command()
@click.argument("kind")
@json_option
def command(kind: str, as_json: bool) -> None:
    """Fail."""
    if kind == "cpu":
        torch.empty(10**15)
    if kind == "none":
        echo_json({"fine": as_json})
        return
    raise FAILURES[kind]
'''
LONG = '''"""Talk for a long time."""
import time
import click

@click.command()
def command() -> None:
    """Talk."""
    for number in range(10**6):
        click.echo(f"line {number}")
        time.sleep(0.001)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of tools: two that work, one that cannot be imported, one that is private."""
    folder = tmp_path / "shell_tools"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "fail_loudly.py").write_text(FAIL)
    (folder / "talk.py").write_text(LONG)
    (folder / "broken.py").write_text('"""Cannot be imported."""\nimport a_module_that_is_not_there\n')
    (folder / "_private.py").write_text('"""Not a command."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("shell_tools")]:
        del sys.modules[name]


@pytest.fixture
def shell(folder: Path) -> Tools:
    return Tools(name="golf", package="shell_tools")


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from golf.cli import Tools; "
    code += "Tools(name='golf', package='shell_tools').main()"
    command = [sys.executable, "-c", code, str(folder.parent), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_help_lists_commands_by_file_name_with_their_first_docstring_line(shell: Tools) -> None:
    lines = CliRunner().invoke(shell, ["--help"]).stdout.splitlines()
    listed = [line.split(maxsplit=1) for line in lines[lines.index("Commands:") + 1 :]]
    assert listed == [
        ["broken", "Cannot be imported."],
        ["fail-loudly", "Fail in the way that is asked for."],
        ["talk", "Talk for a long time."],
    ]


def test_help_imports_no_command(shell: Tools) -> None:
    CliRunner().invoke(shell, ["--help"])
    assert [name for name in sys.modules if name.startswith("shell_tools.")] == []


def test_invoking_a_command_imports_that_one_alone(shell: Tools) -> None:
    CliRunner().invoke(shell, ["fail-loudly", "none"])
    assert [name for name in sys.modules if name.startswith("shell_tools.")] == ["shell_tools.fail_loudly"]


def test_an_unknown_command_is_refused_with_the_nearest_name(shell: Tools) -> None:
    result = CliRunner().invoke(shell, ["fail_loudy"])
    assert result.exit_code == 2
    assert "did you mean 'fail-loudly'?" in result.stderr


def test_an_unknown_command_like_no_other_lists_all(shell: Tools) -> None:
    assert "there are: broken, fail-loudly, talk." in CliRunner().invoke(shell, ["xyzzy"]).stderr


def test_a_private_module_is_no_command(shell: Tools) -> None:
    assert CliRunner().invoke(shell, ["_private"]).exit_code == 2


@pytest.mark.parametrize(
    ("kind", "code", "sentence"),
    [
        ("gate", 1, "said no"),
        ("usage", 2, "no such recipe"),
        ("file", 3, "x.bin: is short; fetch it again"),
        ("place", 4, "no brotli"),
        ("disk", 5, "disk full"),
        ("number", 6, "loss is nan"),
        ("rank", 7, "rank 3 died"),
        ("memory", 5, "out of memory (40 GB); use smaller batches, what was finished before is intact"),
        (
            "cuda",
            5,
            "out of memory (CUDA out of memory. Tried to allocate 2 GiB.); "
            "use smaller batches, what was finished before is intact",
        ),
        ("stop", 130, "interrupted; everything finished is on disk"),
    ],
)
def test_a_failure_is_one_sentence_on_stderr_and_its_exit_code(
    shell: Tools, kind: str, code: int, sentence: str
) -> None:
    result = CliRunner().invoke(shell, ["fail-loudly", kind])
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (code, "", f"Error: {sentence}")


def test_torch_running_out_of_main_memory_exits_5(shell: Tools) -> None:
    assert CliRunner().invoke(shell, ["fail-loudly", "cpu"]).exit_code == 5


@pytest.mark.parametrize(("kind", "error"), [("bug", ZeroDivisionError), ("end", EOFError)])
def test_an_unexpected_exception_is_not_caught(shell: Tools, kind: str, error: type[Exception]) -> None:
    assert isinstance(CliRunner().invoke(shell, ["fail-loudly", kind]).exception, error)


@pytest.mark.parametrize(
    ("kind", "last"),
    [("bug", "ZeroDivisionError: division by zero"), ("pipe", "RuntimeError: a pipe other than stdout broke")],
)
def test_an_unexpected_exception_exits_1_with_its_traceback(folder: Path, kind: str, last: str) -> None:
    with start(folder, "fail-loudly", kind) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, "")
    assert stderr.startswith("Traceback")
    assert stderr.rstrip().endswith(last)


def test_with_json_a_failure_is_one_document_on_stdout(shell: Tools) -> None:
    result = CliRunner().invoke(shell, ["fail-loudly", "file", "--json"])
    assert json.loads(result.stdout) == {"error": "x.bin: is short; fetch it again", "exit_code": 3}


def test_with_json_an_unknown_option_is_one_document_on_stdout(shell: Tools) -> None:
    result = CliRunner().invoke(shell, ["fail-loudly", "--json", "--nope"])
    assert json.loads(result.stdout) == {"error": "No such option '--nope'.", "exit_code": 2}


def test_success_exits_0(shell: Tools) -> None:
    result = CliRunner().invoke(shell, ["fail-loudly", "none", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"fine": True})


def test_a_reader_that_leaves_ends_the_command_quietly(folder: Path) -> None:
    with start(folder, "talk") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_interrupting_a_command_exits_130_in_one_sentence(folder: Path) -> None:
    with start(folder, "talk") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=5)
    assert (process.returncode, stderr.strip()) == (130, "Error: interrupted; everything finished is on disk")


def test_the_module_runs_as_the_script_does() -> None:
    result = subprocess.run([sys.executable, "-m", "golf", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == "golf 0.1.0\n"


def test_help_of_the_module_calls_itself_golf() -> None:
    result = subprocess.run([sys.executable, "-m", "golf", "-h"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: golf [OPTIONS] COMMAND")


def test_shared_options_arrive_under_their_names(tmp_path: Path) -> None:
    @click.command()
    @json_option
    @set_option
    @force_option
    @out_option("Where to write.")
    def command(as_json: bool, overrides: tuple[str, ...], force: bool, out: Path) -> None:
        echo_json({"as_json": as_json, "overrides": overrides, "force": force, "out": out.name})

    words = ["--json", "--set", "quant.bits=5", "--set", "run.seed=7", "--force", "--out", str(tmp_path / "a.csv")]
    values = json.loads(CliRunner().invoke(command, words).stdout)
    assert values == {"as_json": True, "overrides": ["quant.bits=5", "run.seed=7"], "force": True, "out": "a.csv"}


def test_json_output_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        echo_json({"val_bpb": float("nan")})
