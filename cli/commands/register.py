"""``fp register``: put a model into the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options
from cli.exits import Exit

if TYPE_CHECKING:
    from signatures.records import ModelRecord
    from signatures.registry import Registry


@click.command("register")
@click.argument("path", metavar="PATH", type=options.PATH)
@click.option("--name", required=True, metavar="ORG/MODEL", help="Name of the model in the registry.")
@click.option("--owner", metavar="TEXT", help="Who owns the weights.")
@click.option("--license", metavar="TEXT", help="Their license.")
@click.option("--revision", metavar="TEXT", help="Their version: a commit, a tag, a date.")
@click.option(
    "--base",
    metavar="NAME",
    shell_complete=options.model_names,
    help="Name of the model that these weights were made from.",
)
@click.option("--note", metavar="TEXT", help="Anything else that reports of matches should help to find.")
@click.option("--replace", is_flag=True, help="If the name has other weights already, let it stand for these.")
@options.registered_depth
@options.key
@options.disclose
@options.registry
@options.output
@options.messages
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    path: str,
    name: str,
    owner: str | None,
    license: str | None,  # noqa: A002 - the option's word
    revision: str | None,
    base: str | None,
    note: str | None,
    replace: bool,
    depth: str,
    key: str | None,
    disclose: str,
    registry: str | None,
    format: str,  # noqa: A002 - likewise
    output: str | None,
) -> Exit:
    """Measure a model and put its signature into the registry.

    PATH is a checkpoint or a signature (fp sketch). The weights are not copied. Register public bases first: a match
    that an earlier registration explains is reported as a sibling, not as a copy. The same weights again under the
    same name change nothing; under another name they get an alias.
    """
    from cli.measure import signature_of
    from cli.messages import route
    from cli.output import refuse_overwriting
    from cli.registry import open_for_writing
    from cli.render.registration import REGISTRATION_VIEW, Registered, Step
    from cli.render.write import write_all
    from signatures.records import require_name

    console = options.console(ctx)
    route(console)
    refuse_overwriting(output, (path,))
    require_name(name)
    with open_for_writing(registry) as opened:
        if base is not None and not _has(opened, base):
            console.warning(f"the base {base} is not registered: siblings cannot be told from copies until it is")
        signature = signature_of(path, console, depth, options.secret_key(key), less=disclose == "less")
        before = {record.id: record for record in opened.models()}
        record = opened.register(
            signature,
            name=name,
            owner=owner,
            license=license,
            revision=revision,
            base=base,
            note=note,
            replace=replace,
        )
        step = Step(_step(before.get(record.id), name))
        done = Registered(step, name, record, str(opened.folder), len(opened.models()))
        write_all(REGISTRATION_VIEW, [done], format, output, console)
    return Exit.OK


def _has(registry: Registry, name: str) -> bool:
    from fingerprint.errors import UnknownModelError

    try:
        registry.get(name)
    except UnknownModelError:
        return False
    return True


def _step(before: ModelRecord | None, name: str) -> str:
    """What the registration did, from the model's record before it."""
    if before is None:
        return "new"
    return "unchanged" if before.named(name) is not None else "alias"
