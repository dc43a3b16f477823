"""The reference of the commands: current, and complete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from cli.main import COMMANDS, fp
from cli.reference import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def commands(group: click.Group = fp, path: str = "fp") -> Iterator[tuple[str, click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from commands(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command


ALL = dict(commands())


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == reference(), "run: python -m cli.reference > docs/cli.md"


def test_the_page_does_not_depend_on_contexts_made_before() -> None:
    for command in ALL.values():
        command.get_params(click.Context(command))
    assert PAGE.read_text() == reference()


def test_every_command_of_the_contract_is_there() -> None:
    assert list(COMMANDS) == [
        "scan", "register", "compare", "sketch", "list", "show", "remove", "export", "import", "inspect", "index",
        "schema",
    ]  # fmt: skip
    assert {"fp index build", "fp index status", "fp index check"} <= set(ALL)


@pytest.mark.parametrize("path", ALL)
def test_every_command_and_option_is_documented(path: str) -> None:
    section = reference().split(f"## {path}\n")[1].split("\n## ")[0]
    assert ALL[path].help
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            for option in parameter.opts:
                assert f"`{option}`" in section
                assert "_" not in option


@pytest.mark.parametrize("path", ALL)
def test_every_command_can_be_quiet_or_verbose(path: str) -> None:
    names = {option for parameter in ALL[path].params for option in parameter.opts}
    assert {"-q", "--quiet", "-v", "--verbose", "--no-color"} <= names
