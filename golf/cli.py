"""The command shell: one `golf` group whose commands are the files of golf.tools.

tools/swa_blend.py is `golf swa-blend` and holds a click command or group called `command`. It is imported only when
it is invoked, so help and completion cost no torch.

Results go to stdout, everything else to stderr. A failure the user can meet is one sentence on stderr and its exit code
(golf/errors.py); with --json, stdout then holds {"error": sentence, "exit_code": code} in place of the result, so that
it is one JSON document either way; of several processes their launcher prints it. Any other exception is a bug and
keeps its traceback (exit 1).
"""

import ast
import difflib
import importlib
import importlib.util
import json
import math
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from golf.errors import GolfError, InterruptedRunError, ResourceError
from golf.ranks import inside_launcher

BROKEN_PIPE = 141  # 128 + SIGPIPE, what the shell reports of any program whose reader went away

Command = TypeVar("Command", bound=Callable[..., Any])


class Tools(click.Group):
    """A group whose commands are the modules of one package, found by file name and imported on use."""

    def __init__(self, *, package: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.package = package

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "golf",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command line and exit with its code."""
        words = sys.argv[1:] if args is None else list(args)
        if not standalone_mode:
            return super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
        except Exception as error:
            code = _tell(error, as_json="--json" in words)
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the command and return the exit code; a command that returns, whatever it returns, is fine."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            if not _stdout_is_gone():  # click would take any broken pipe for stdout's, and be silent
                raise RuntimeError("a pipe other than stdout broke") from error
            return BROKEN_PIPE
        return 0

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the package's modules, in alphabetical order."""
        files = self._folder().glob("*.py")
        return sorted(file.stem.replace("_", "-") for file in files if not file.stem.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of that name and return its `command`."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{self.package}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a command line; an unknown one is refused with the nearest name."""
        names = self.list_commands(ctx)
        if args[0] not in names and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}."
            raise click.UsageError(f"No such command '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List every command with the first line of its module's docstring, importing none."""
        rows = [(name, _summary(self._folder() / f"{name.replace('-', '_')}.py")) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def _folder(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{self.package} is not an installed package")
        return Path(next(iter(spec.submodule_search_locations)))


@click.group(
    cls=Tools,
    package="golf.tools",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples: golf demo · golf train demo · golf inspect demo-1",
)
@click.version_option(package_name="golf-hotstart", message="golf %(version)s")
def cli() -> None:
    """Train once, checkpoint at phase boundaries, answer every later question from the checkpoints."""


def main() -> None:
    """Run the `golf` command line; never returns."""
    cli.main()


def json_option(function: Command) -> Command:
    """Add --json as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def override_option(text: str, *, metavar: str = "TABLE.KEY=VALUE") -> Callable[[Command], Command]:
    """Add --set table.key=value as the argument `overrides`, a tuple of such strings in the order given."""
    return click.option("--set", "overrides", multiple=True, metavar=metavar, help=text)


set_option = override_option("Change one setting of the recipe; may be given again.")


def out_option(text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Add --out PATH as the argument `out`, a Path (None where it is not required and not given)."""
    return click.option("--out", type=click.Path(path_type=Path), required=required, help=text)


def gpus_option(function: Command) -> Command:
    """Add --gpus N as the argument `processes`; see `is_launched`."""
    text = "Processes, one a GPU (or CPU processes where there is none)."
    return click.option("--gpus", "processes", type=click.IntRange(1, 8), default=1, help=text)(function)


def is_launched(processes: int) -> bool:
    """Run this command line once more in so many processes, unless this is one of them; say whether that was done."""
    if processes == 1 or inside_launcher():
        return False
    from golf.launch import launch

    launch(sys.argv[1:], processes)
    return True


def force_option(function: Command) -> Command:
    """Add --force as the argument `force`."""
    return click.option("--force", is_flag=True, help="Replace what is already there.")(function)


def check_finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse what no range excludes: nan, which is never reached, and inf."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number.")
    return value


def echo_json(value: Any) -> None:
    """Print `value` on stdout as one JSON document; NaN is refused because it is not JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _summary(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
    return text.partition("\n")[0]


def _tell(error: Exception, *, as_json: bool) -> int:
    """Print a failure the user can meet and return its exit code; raise any other error again."""
    if isinstance(error, click.ClickException):
        error.show()
        sentence, code = error.format_message(), error.exit_code
    else:
        failure = _failure(error)
        sentence, code = str(failure), failure.exit_code
        click.echo(f"Error: {sentence}", err=True)
    if as_json and not inside_launcher():
        echo_json({"error": sentence, "exit_code": code})
    return code


def _failure(error: Exception) -> GolfError:
    if isinstance(error, GolfError):
        return error
    if isinstance(error, click.Abort):
        if isinstance(error.__cause__, EOFError):  # click turns it into Abort, but a short file is not a Ctrl-C
            raise error.__cause__
        return InterruptedRunError("interrupted; everything finished is on disk")
    # torch is recognised by name: importing it to catch its error would cost every command a second
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator" in str(error):
        detail = str(error).partition("\n")[0] or "no detail"
        return ResourceError(f"out of memory ({detail}); use smaller batches, what was finished before is intact")
    raise error


def _stdout_is_gone() -> bool:
    """Whether the reader of stdout went away; if so, point stdout at nothing, lest the flush at exit fail again."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(0):  # asked for nothing, it reports errors and hang-ups alone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
