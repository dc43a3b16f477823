"""Writes the reference of the commands as Markdown: ``python -m cli.reference > docs/cli.md``."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Final

import click

from cli.exits import Exit
from cli.main import fp

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD: Final = """# The command line

Made from the commands by `python -m cli.reference > docs/cli.md`; a test keeps it current.

## In general

- PATH is a file, a folder, an index of shards, or a URL (`https://`, `hf://org/model`, `s3://`, `gs://`: see
  [formats.md](formats.md#from-afar)); `-` reads a list of paths from standard input, one a line. A signature
  (`.fpsig`) may stand in for a checkpoint.
- The result goes to standard output, and nothing else does; messages and, on a terminal, progress go to standard error.
- `--format json` prints a list of objects, `jsonl` one object a line as soon as it is known, `csv` a table. Every
  object names its JSON Schema in `schema`; `fp schema fp.scan/1` prints it. JSON is ASCII and holds finite numbers
  only. Bytes of a file name that are not UTF-8 appear as `\\xff`. In text and CSV, control characters of names are
  escaped (`\\n`, `\\x1b`), and in CSV a cell that would begin a formula begins with an apostrophe.
- `-o FILE` is written beside FILE and takes its place at the end: an interrupted run leaves the old file.
- Every option is also an environment variable: `--top-k` of `fp scan` is `FP_SCAN_TOP_K`, `--queries` of
  `fp index check` is `FP_INDEX_CHECK_QUERIES`. Options that can be repeated are separated by blanks there.
  `FP_REGISTRY` sets the registry of all commands, `FP_INDEX` where its vectors lie, `FP_THREADS` how many threads
  or forked processes share the work ([lists and machines](bulk.md)), `FP_DEVICE` where large products are
  computed, `FP_ALLOW_PRIVATE` and `FP_DOWNLOAD` how it fetches.
- Colours: none with `--no-color`, `NO_COLOR`, `TERM=dumb`, or if the output is no terminal.
- Shell completion: `eval "$(_FP_COMPLETE=bash_source fp)"` in `~/.bashrc`, `eval "$(_FP_COMPLETE=zsh_source fp)"` in
  `~/.zshrc`, `_FP_COMPLETE=fish_source fp | source` in `~/.config/fish/config.fish`. It knows registered names.

## Exit status

| status | meaning |
|---|---|
"""
_MEANINGS: Final = {
    Exit.OK: "done; of a scan: scanned whole, and nothing at or above `--fail-on`",
    Exit.MATCH: "a match at or above `--fail-on`",
    Exit.ERROR: "an error: unreadable or malformed file, bad usage, broken registry",
    Exit.INCONCLUSIVE: "scanned but not whole, or inconclusive, and nothing matched",
    Exit.INTERRUPTED: "interrupted (Ctrl-C), or asked to end (SIGTERM)",
}
_TAIL: Final = """
With several suspects 1 beats 2 beats 3 beats 0. Siblings, shared components and common initialisation do not raise the
status by themselves. If nobody reads the output any more (`fp list | head`), a command ends quietly: with 0, and a scan
with the status of what it had scanned, at least 3, since it was not whole.
"""


def reference() -> str:
    """The whole page."""
    rows = "".join(f"| {status.value} | {meaning} |\n" for status, meaning in _MEANINGS.items())
    with click.Context(fp, info_name="fp", **fp.context_settings) as context:
        sections = "\n".join(_sections(fp, context))
    return f"{_HEAD}{rows}{_TAIL}\n{sections}"


def _sections(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        inner = click.Context(command, info_name=name, parent=context, **command.context_settings)
        if isinstance(command, click.Group):
            yield from _sections(command, inner)
        else:
            yield _section(command, inner)


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {context.command_path}", "", f"`{context.command_path} {usage}`", ""]
    lines += [inspect.cleandoc(command.help or "").replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n"), ""]
    lines += ["| option | meaning | default | environment |", "|---|---|---|---|"]
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            lines.append(_option(parameter, context))
    return "\n".join(lines) + "\n"


def _option(option: click.Option, context: click.Context) -> str:
    # click keeps the option for help that the first context asked for, whatever later ones call it.
    spelt = context.help_option_names if "--help" in option.opts else (*option.opts, *option.secondary_opts)
    names = ", ".join(f"`{name}`" for name in spelt)
    values = ""
    if isinstance(option.type, click.Choice):
        values = " " + " ".join(f"`{value}`" for value in option.type.choices)
    elif not option.is_flag and not option.count:
        values = f" {option.make_metavar(context)}"
    default = f"`{option.default}`" if option.show_default and option.default is not None else ""
    variable = ""
    if option.allow_from_autoenv and "--help" not in option.opts:
        variable = f"`{context.auto_envvar_prefix}_{str(option.name).upper()}`"
    need = " (required)" if option.required else ""
    return f"| {names}{values} | {option.help}{need} | {default} | {variable} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
