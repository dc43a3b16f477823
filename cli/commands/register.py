"""``fp register``: put models into the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.exits import Exit
from cli.paths import STANDARD

if TYPE_CHECKING:
    from cli.console import Console
    from cli.measure import Measuring


@click.command("register")
@click.argument("paths", nargs=-1, metavar="PATH...", type=options.PATH)
@click.option(
    "--name",
    metavar="ORG/MODEL",
    help="Name of the model in the registry; of several, a template with {stem} or {folder}.",
)
@click.option(
    "--list",
    "table",
    metavar="FILE",
    type=options.PATH,
    help="Register the models of a table instead (-: standard input): JSON objects, one a line, or columns set apart "
    "by tabs under headings: path, name, owner, license, revision, base, note.",
)
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
@options.device
@options.remote
@options.bulk
@click.option(
    "-0", "--null", is_flag=True, help="Paths on standard input end with NUL (find -print0), not with a line break."
)
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
    paths: tuple[str, ...],
    name: str | None,
    table: str | None,
    executor: str | None,
    jobs: int | None,
    resume: str | None,
    null: bool,
    depth: str | None,
    key: str | None,
    disclose: str,
    output: str | None,
    **chosen: Any,
) -> Exit:
    """Measure models and put their signatures into the registry.

    PATH is a checkpoint (also a URL) or a signature (fp sketch); - reads a list of paths from standard input. The
    weights are not copied. Register public bases first: a match that an earlier registration explains is reported as a
    sibling, not as a copy. The same weights again under the same name change nothing; under another name they get an
    alias. With another --key, --depth or --disclose they need --replace.

    Of several models each gets its name from a template ('acme/{stem}') or from the table of --list. They are
    registered in that order, whoever is measured first, and an error of one does not stop the rest.
    """
    from cli.bulk import Bulk
    from cli.measure import Measuring
    from cli.messages import route
    from cli.output import refuse_overwriting
    from cli.worklist import has_places

    console = options.console(ctx)
    route(console)
    inputs = (*paths, *([table] if table else []))
    refuse_overwriting(output, inputs)
    refuse_overwriting(resume, (*inputs, *([output] if output else [])))
    bulk = Bulk(executor, jobs, resume)
    if not inputs or (paths and table is not None):
        raise click.UsageError("give either PATHs or a table with --list", ctx)
    if table is None and name is None:
        raise click.UsageError("Missing option '--name'.", ctx)
    how = Measuring(depth, options.secret_key(key, depth), less=disclose == "less")
    several = len(paths) > 1 or STANDARD in paths
    if several and name is not None and not has_places(name):
        raise click.UsageError("several models need several names: --name 'acme/{stem}', or --list", ctx)
    if several or table is not None or resume is not None or not bulk.alone:
        from cli.registering import register_list

        return register_list(paths, name, table, bulk, console, null=null, how=how, output=output, **chosen)
    return _register_one(paths[0], name or "", console, how=how, output=output, **chosen)


def _register_one(
    path: str,
    name: str,
    console: Console,
    *,
    how: Measuring,
    base: str | None,
    registry: str | None,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
    **said: Any,
) -> Exit:
    """Register one model; whatever goes wrong is raised."""
    from cli.measure import signature_of
    from cli.registering import step_of
    from cli.registry import Destination
    from cli.render.registration import REGISTRATION_VIEW, Registered
    from cli.render.write import write_all
    from cli.worklist import named
    from signatures.records import require_name

    name = require_name(named(path, name))
    with Destination(registry) as place:
        if base is not None and place.holder(base) is None:
            console.warning(f"the base {base} is not registered: siblings cannot be told from copies until it is")
        signature = signature_of(path, console, how)
        holder = place.holder(name)
        record = place.made().register(signature, name=name, base=base, **said)
        step = step_of(None if holder is None else holder.id, record)
        done = Registered(step, path, name, record, str(place.folder), place.count())
        write_all(REGISTRATION_VIEW, [done], format, output, console)
    return Exit.OK
