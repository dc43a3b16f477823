"""Options that several commands share, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cli.console import Console
from signatures.report import Confidence

if TYPE_CHECKING:
    from signatures.keyed import Key

Command = TypeVar("Command", bound=Callable[..., Any])

REGISTRY_VARIABLE: Final = "FP_REGISTRY"


PATH: Final = click.Path()
"""Any path: what is wrong with one is said by the readers. The type lets the shell complete file names."""

FOLDER: Final = click.Path(file_okay=False)


class Format(StrEnum):
    """Formats of results."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


class Depth(StrEnum):
    """How much of a suspect is read."""

    AUTO = "auto"
    QUICK = "quick"
    FULL = "full"
    DEEP = "deep"


AVAILABLE_DEPTHS: Final = (Depth.AUTO, Depth.QUICK, Depth.FULL)


class RegistryOption(click.Option):
    """``--registry``: its own variable first (``FP_SCAN_REGISTRY``), then the one for all commands."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """See ``click.Parameter``."""
        return super().resolve_envvar_value(ctx) or _general_registry()


def _general_registry() -> str | None:
    import os

    return os.environ.get(REGISTRY_VARIABLE) or None


def registry(command: Command) -> Command:
    """``--registry DIR``."""
    return click.option(
        "--registry",
        cls=RegistryOption,
        metavar="DIR",
        type=FOLDER,
        help=f"Folder of the registry (default: {REGISTRY_VARIABLE}, else the user's data folder).",
    )(command)


def output(command: Command) -> Command:
    """``--format`` and ``-o``."""
    command = click.option(
        "-o",
        "--output",
        metavar="FILE",
        type=PATH,
        help="Write the result to FILE, whole or not at all, instead of standard output.",
    )(command)
    return click.option(
        "--format",
        type=click.Choice([one.value for one in Format]),
        default=Format.TEXT.value,
        show_default=True,
        help="text for people; json: a list of objects; jsonl: one object a line, as soon as it is known; csv.",
    )(command)


def messages(command: Command) -> Command:
    """``-q``, ``-v`` and ``--no-color``; they set the console up and are not passed to the command."""
    command = click.option(
        "--no-color",
        is_flag=True,
        expose_value=False,
        callback=_set_colour,
        help="No colours (also: NO_COLOR, TERM=dumb).",
    )(command)
    command = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_set_verbose,
        help="Say more: all tensors and layers, tracebacks of errors; -vv: log messages.",
    )(command)
    return click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="Only results and errors."
    )(command)


def fail_on(command: Command) -> Command:
    """``--fail-on``."""
    return click.option(
        "--fail-on",
        type=click.Choice([one.value for one in (Confidence.POSSIBLE, Confidence.LIKELY, Confidence.CERTAIN)]),
        default=Confidence.LIKELY.value,
        show_default=True,
        help="Confidence from which a match gives exit status 1.",
    )(command)


def globs(command: Command) -> Command:
    """``--include`` and ``--exclude``."""
    command = click.option(
        "--exclude", multiple=True, metavar="GLOB", help="Leave out tensors whose name matches GLOB (repeatable)."
    )(command)
    return click.option(
        "--include", multiple=True, metavar="GLOB", help="Only tensors whose name matches GLOB (repeatable)."
    )(command)


def depth(command: Command) -> Command:
    """``--depth``."""
    return click.option(
        "--depth",
        type=click.Choice([one.value for one in Depth]),
        default=Depth.AUTO.value,
        show_default=True,
        callback=_available_depth,
        help="How much is read: quick a bounded sample, full everything, auto of large checkpoints first the one and, "
        "if that explains nothing, the other. deep is not available yet.",
    )(command)


def registered_depth(command: Command) -> Command:
    """``--depth`` of what is to be registered."""
    return click.option(
        "--depth",
        type=click.Choice([Depth.QUICK.value, Depth.FULL.value]),
        default=Depth.FULL.value,
        show_default=True,
        help="How much is read: full everything; quick a bounded sample, by which copies are found but no rewritten "
        "or rearranged ones.",
    )(command)


def key(command: Command) -> Command:
    """``--key``."""
    return click.option(
        "--key",
        metavar="FILE",
        type=PATH,
        help="Secret key (32 random bytes or more): a second sketch under it is kept, or compared, that no forger can "
        "have aimed at.",
    )(command)


def disclose(command: Command) -> Command:
    """``--disclose``."""
    return click.option(
        "--disclose",
        type=click.Choice(["all", "less"]),
        default="all",
        show_default=True,
        help="What the signature tells of the weights: less leaves out samples of neurons, attention and layers, by "
        "which rewritten copies are found (docs/privacy.md).",
    )(command)


def secret_key(path: str | None) -> Key | None:
    """The key in a file. Raises ``UsageError``, ``InputError``."""
    if path is None:
        return None
    from signatures.keyed import read_key

    return read_key(path)


def console(ctx: click.Context) -> Console:
    """The console of this run."""
    found = ctx.find_object(Console)
    return Console() if found is None else found


def _set_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        console(ctx).verbosity = -1


def _set_verbose(ctx: click.Context, _parameter: click.Parameter, value: int) -> None:
    if value:
        console(ctx).verbosity = value


def _set_colour(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        console(ctx).wants_colour = False


def _available_depth(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if Depth(value) not in AVAILABLE_DEPTHS:
        raise click.BadParameter(
            f"{value!r} is not available in this version; use {' or '.join(AVAILABLE_DEPTHS)}", ctx, parameter
        )
    return value


def model_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered names that begin with ``incomplete``, for the shell's completion."""
    from cli.registry import open_existing
    from fingerprint.errors import WeightprintError

    try:
        with open_existing(ctx.params.get("registry")) as found:
            names = [entry.name for model in found.models() for entry in model.registrations]
    except WeightprintError:
        return []
    return [name for name in names if name.startswith(incomplete)]
