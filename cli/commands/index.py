"""``fp index``: the index of vectors beside the registry, which can always be made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.exits import Exit, strongest

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group("index")
def command() -> None:
    """Look after the search index, which is made from the signatures and can be rebuilt at any time."""


@command.command("build")
@options.registry
@options.output
@options.messages
@click.pass_context
def build(ctx: click.Context, /, *, registry: str | None, **shown: Any) -> Exit:
    """Make the index anew from the signatures."""
    from cli.messages import route
    from cli.registry import open_existing

    route(options.console(ctx))
    with open_existing(registry) as opened:
        return _show(ctx, "build", opened.rebuild_index(), **shown)


@command.command("status")
@options.registry
@options.output
@options.messages
@click.pass_context
def status(ctx: click.Context, /, *, registry: str | None, **shown: Any) -> Exit:
    """Show what the index covers, and how it is searched. What it lacks is added in memory when a scan needs it."""
    from cli.messages import route
    from cli.registry import open_existing

    route(options.console(ctx))
    with open_existing(registry) as opened:
        return _show(ctx, "status", opened.index_status(), **shown)


@command.command("check")
@click.option(
    "--queries", type=click.IntRange(min=1), default=200, show_default=True, help="Searches that are done both ways."
)
@options.registry
@options.output
@options.messages
@click.pass_context
def check(ctx: click.Context, /, *, registry: str | None, queries: int, **shown: Any) -> Exit:
    """Check registry and index: signatures, records, and the index against the slow search. Exit status 2 if wrong.

    An index that compares with every vector must find what the slow search finds. One of inverted lists may miss some:
    the share that it finds is shown, and is wrong below the bound shown beside it.
    """
    from cli.messages import route
    from cli.registry import open_existing

    route(options.console(ctx))
    with open_existing(registry) as opened:
        found = opened.check_index(queries)
        problems = [*opened.check(), *found.problems]
        return _show(ctx, "check", found.status, problems, found, **shown)


def _show(
    ctx: click.Context,
    action: str,
    found: Any,
    problems: Sequence[str] = (),
    check: Any = None,
    *,
    format: str,  # noqa: A002 - the option's word
    output: str | None,
) -> Exit:
    from cli.render.index import INDEX_VIEW, IndexState
    from cli.render.write import keeping, write_all

    console = options.console(ctx)
    statuses = [Exit.ERROR if problems else Exit.OK]
    for problem in problems:
        console.error(problem)
    with keeping(statuses, console):
        write_all(INDEX_VIEW, [IndexState(action, found, tuple(problems), check)], format, output, console)
    return strongest(statuses)
