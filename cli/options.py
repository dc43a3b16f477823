"""Options that several commands share, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cli.console import Console
from fingerprint.urls import is_remote
from signatures.report import Confidence

if TYPE_CHECKING:
    import os

    from signatures.keyed import Key

Command = TypeVar("Command", bound=Callable[..., Any])

REGISTRY_VARIABLE: Final = "FP_REGISTRY"
_REMOTE: Final = "fp.remote"
_MOST_COMPLETIONS: Final = 200
_for_another: ContextVar[Mapping[str, bool]] = ContextVar("for_another")

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


class Executor(StrEnum):
    """Who works on a list."""

    NONE = "none"
    POOL = "pool"
    RAY = "ray"


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


def bulk(command: Command) -> Command:
    """``--executor``, ``--jobs`` and ``--resume``."""
    command = click.option(
        "--resume",
        metavar="FILE",
        type=PATH,
        help="Keep a journal of what is done in FILE, and leave out what it says is done already.",
    )(command)
    command = click.option(
        "--jobs",
        type=click.IntRange(min=1),
        metavar="N",
        help="Work on N items of a list at once (default: 1; with --executor pool or ray: one for each processor).",
    )(command)
    return click.option(
        "--executor",
        type=click.Choice([one.value for one in Executor]),
        help="Who works on a list: none, this process alone; pool, processes of this machine (default with --jobs); "
        "ray, the Ray cluster that RAY_ADDRESS names, else Ray on this machine.",
    )(command)


def depth(command: Command) -> Command:
    """``--depth``."""
    return click.option(
        "--depth",
        type=click.Choice([one.value for one in Depth]),
        default=Depth.AUTO.value,
        show_default=True,
        help="How much is looked at: quick a bounded sample; full every byte; deep, beyond that, all neurons, and "
        "layers without their embeddings; auto the next of these as long as the one before explains nothing.",
    )(command)


def registered_depth(command: Command) -> Command:
    """``--depth`` of what is to be registered."""
    return click.option(
        "--depth",
        type=click.Choice([Depth.QUICK.value, Depth.FULL.value]),
        help="How much is read: full everything (the default, but of large models elsewhere it must be said); quick a "
        "bounded sample, by which copies are found but no rewritten or rearranged ones.",
    )(command)


def remote(command: Command) -> Command:
    """``--allow-private`` and ``--download``; see ``located``."""
    command = click.option(
        "--download",
        is_flag=True,
        expose_value=False,
        callback=_set_remote,
        help="If PATH is a URL and its server knows no byte ranges, fetch whole files into a temporary one.",
    )(command)
    return click.option(
        "--allow-private",
        is_flag=True,
        expose_value=False,
        callback=_set_remote,
        help="If PATH is a URL, let it and its redirects lead to addresses that are not public.",
    )(command)


def located(path: str) -> str | os.PathLike[str]:
    """``path``; of a URL, together with how to fetch it: by the options of the command, else by the environment.

    Raises ``UsageError`` for an environment that cannot be followed.
    """
    if not is_remote(path):
        return path
    from dataclasses import replace

    from fingerprint.remote import Location, RemoteOptions

    wanted: dict[str, Any] = {**fetching()}
    return Location(path, replace(RemoteOptions.from_environment(), **wanted))


def fetching() -> dict[str, bool]:
    """How the command line wants URLs to be fetched; in a process that works for another one, the other's."""
    context = click.get_current_context(silent=True)
    return dict(_for_another.get({}) if context is None else context.meta.get(_REMOTE, {}))


def fetch_as(chosen: Mapping[str, bool]) -> None:
    """In a process that works for another one: fetch as that one was told (its ``fetching``)."""
    _for_another.set(chosen)


def _set_remote(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta.setdefault(_REMOTE, {})[str(parameter.name)] = True


def device(command: Command) -> Command:
    """``--device``."""
    return click.option(
        "--device",
        metavar="NAME",
        expose_value=False,
        callback=_set_device,
        help="Where large products are computed, as PyTorch names it: cuda, cuda:1, mps (default: FP_DEVICE, else the "
        "processor, without PyTorch).",
    )(command)


def _set_device(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Set it for this process and those that it starts. Raises ``UsageError`` if it is not there."""
    if value is not None:
        import os

        from fingerprint.device import VARIABLE, chosen

        os.environ[VARIABLE] = value
        chosen()


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


def secret_key(path: str | None, depth: str | None = None) -> Key | None:
    """The key in a file; none may be given with ``depth`` quick. Raises ``UsageError``, ``InputError``."""
    if path is None:
        return None
    if depth == Depth.QUICK:
        from fingerprint.errors import UsageError

        raise UsageError("--key reads every byte of the weights: leave out --depth quick, or the key")
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


def model_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered names that begin with ``incomplete``, whatever their case, for the shell's completion."""
    from cli.registry import open_existing
    from fingerprint.errors import WeightprintError

    try:
        with open_existing(ctx.params.get("registry")) as found:
            return found.names(incomplete, _MOST_COMPLETIONS)
    except WeightprintError:
        return []
