"""The program ``fp``: finds the command, and turns whatever ends it into an exit status."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from cli.console import PROGRAM, Console
from cli.exits import Exit
from cli.output import OutputClosedError, remove_leftovers
from fingerprint.errors import WeightprintError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

COMMANDS: Final = {
    "scan": "cli.commands.scan",
    "register": "cli.commands.register",
    "compare": "cli.commands.compare",
    "sketch": "cli.commands.sketch",
    "list": "cli.commands.list",
    "show": "cli.commands.show",
    "remove": "cli.commands.remove",
    "export": "cli.commands.export",
    "import": "cli.commands.import_",
    "inspect": "cli.commands.inspect",
    "index": "cli.commands.index",
    "schema": "cli.commands.schema",
}
"""Where each command is, in the order of the help text. Each module has one function ``command``."""


class Commands(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See ``click.Group``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See ``click.Group``."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = import_module(module).command
        if not isinstance(found, click.Command):
            raise TypeError(f"{module}.command is no command")
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """See ``click.Group``; an interruption is told here, since click puts an empty line before it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{PROGRAM} (weightprint) {version('weightprint')}")
        ctx.exit(Exit.OK)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "FP", "max_content_width": 100},
    epilog="Exit status: 0 nothing found, 1 match, 2 error, 3 inconclusive, 130 interrupted. "
    "Every option is also an environment variable: FP_SCAN_TOP_K=3 is fp scan --top-k 3.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=_print_version,
    help="Show the version.",
)
def fp() -> None:
    """Find out which registered model a set of weights descends from, how, and how sure that is."""


def run(arguments: Sequence[str] | None = None, console: Console | None = None) -> Exit:
    """Run the program with ``arguments`` (default: those of the process) and return its exit status."""
    console = Console() if console is None else console
    streams = sys.stdout, sys.stderr
    try:
        status = fp.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=console)
    except SystemExit as end:
        # Click itself ends the process, with our status of a match, when help goes into a closed pipe; it leaves other
        # streams behind then.
        closed = sys.stdout is not streams[0]
        sys.stdout, sys.stderr = streams
        return Exit.OK if closed or end.code in {0, None} else Exit.ERROR
    except (click.Abort, KeyboardInterrupt) as error:
        console.interrupted()
        console.trace(error)
        return Exit.INTERRUPTED
    except OutputClosedError:
        return Exit.OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.ERROR
    except click.ClickException as error:
        console.error(_usage_message(error))
        console.trace(error)
        return Exit.ERROR
    except WeightprintError as error:
        console.error(str(error))
        console.trace(error)
        return Exit.ERROR
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line and the right status
        if _Ending.asked:  # an import that is interrupted may fail with an error of its own
            console.interrupted()
            console.trace(error)
            return Exit.INTERRUPTED
        console.error(_unexpected(console, error))
        console.trace(error)
        return Exit.ERROR
    return Exit(status) if isinstance(status, int) else Exit.OK


def main() -> NoReturn:
    """Run the program on the arguments of the process; ends the process."""
    _reserve_streams()
    signal.signal(signal.SIGINT, _Ending())
    signal.signal(signal.SIGTERM, _Ending())
    console = Console()
    warnings.showwarning = lambda message, category, *_, **__: console.detail(f"{category.__name__}: {message}")
    status = run(console=console)
    for number in (signal.SIGINT, signal.SIGTERM):  # it is over: an interruption would only be a traceback
        signal.signal(number, lambda *_: os._exit(status))
    _release(sys.stdout)
    _release(sys.stderr)
    # Nothing is open any more: to take everything apart that was imported and found takes a tenth of a short scan.
    atexit._run_exitfuncs()
    os._exit(status)


class _Ending:
    """Ends the program tidily at the first signal, and at once at the next one."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _Ending.asked:
            remove_leftovers()
            os._exit(Exit.INTERRUPTED)
        _Ending.asked = True
        raise KeyboardInterrupt


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message} (see {context.command_path} --help)"


def _unexpected(console: Console, error: Exception) -> str:
    text = f"unexpected {type(error).__name__}: {error}"
    return text if console.verbosity > 0 else f"{text} (a defect of this program; -v shows where)"


def _reserve_streams() -> None:
    """Put the null device where a standard stream is closed.

    The next file that is opened would take its number, and what a library writes to standard error would end up there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _release(stream: Any) -> None:
    """Flush a stream, or give it up: the interpreter would complain at its end about one that nobody reads."""
    try:
        stream.flush()
    except (OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno() if stream is not None else 1)
        os.close(sink)
