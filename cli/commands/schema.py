"""``fp schema``: the JSON Schemas of what the commands print."""

from __future__ import annotations

import click

from cli import options
from cli.exits import Exit


def _names(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from cli.schemas import schema_names

    return [name for name in schema_names() if name.startswith(incomplete)]


@click.command("schema")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=_names)
@click.option("-o", "--output", metavar="FILE", type=options.PATH, help="Write to FILE instead of standard output.")
@options.messages
def command(name: str | None, output: str | None) -> Exit:
    """List the JSON Schemas, or print the one called NAME (such as fp.scan/1).

    The objects of --format json and jsonl say in their member "schema" which one describes them.
    """
    from cli.output import opened
    from cli.schemas import schema_names, schema_text, schema_title

    with opened(output) as sink:
        if name is not None:
            sink.write(schema_text(name))
        else:
            for one in schema_names():
                sink.write(f"{one:<16}{schema_title(one)}\n")
    return Exit.OK
