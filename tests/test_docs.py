"""The pages: commands that the program takes, a snippet that runs, links that lead somewhere, nothing left out."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from benchmarks.lineage.derive_cases import Case
from benchmarks.lineage.derive_cases import Verdict as Truth
from benchmarks.lineage.derive_table import all_cases
from cli.exits import Exit
from cli.main import fp
from signatures.report import Confidence, Link, Relation, Standing, Verdict
from tests.small_models import low_rank_change, model, save

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
WRITTEN = [README, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
"""Pages that people write, besides the generated reference of the commands among them."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")


def blocks(page: Path, language: str) -> list[str]:
    return [text for word, text in _BLOCK.findall(page.read_text()) if word == language]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text())


def typed(page: Path) -> Iterator[list[str]]:
    """The command lines of a page's blocks, each command of a pipe apart, as lists of words."""
    lines = [text.replace("\\\n", " ") for text in blocks(page, "sh")]
    shown = [text[2:] for block in blocks(page, "text") for text in block.splitlines() if text.startswith("$ ")]
    for line in "\n".join([*lines, *shown]).splitlines():
        words = shlex.split(line, comments=True)
        while "|" in words:
            yield words[: words.index("|")]
            words = words[words.index("|") + 1 :]
        if words:
            yield words


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that ``words`` (without "fp") name, and the words that are left for it."""
    command: click.Command = fp
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"{words[0]} is no command"
        command, words = found, words[1:]
    return command, words


PROGRAM_LINES = [line for page in WRITTEN for line in typed(page) if Path(line[0]).name == "fp"]


def test_the_readme_shows_every_command() -> None:
    known = set(fp.list_commands(click.Context(fp)))
    text = README.read_text()
    assert {name for name in known if f"fp {name}" in text} == known


@pytest.mark.parametrize("line", PROGRAM_LINES, ids=" ".join)
def test_command_lines_are_accepted(line: list[str]) -> None:
    command, words = find(line[1:])
    # As the program does it: a command keeps the help option that it was first asked for.
    parent = None if command is fp else click.Context(fp, **fp.context_settings)
    if words == ["--version"]:  # ends the program where it is parsed
        with pytest.raises(click.exceptions.Exit):
            command.make_context(line[0], list(words))
    else:
        assert command.make_context(line[0], list(words), parent=parent).command is command


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_and_options_in_sentences_exist(page: Path) -> None:
    for span in _SPAN.findall(prose(page)):
        if not span.startswith("fp "):
            continue
        command, words = find(shlex.split(span.replace("[", "").replace("]", ""))[1:])
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"-h", "--help"}
        assert {word for word in words if word.startswith("-") and word != "-"} <= known, span


def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks(README, "python")
    save(model(1), tmp_path / "model.safetensors")
    save(low_rank_change(model(1), 7, 0.05), tmp_path / "suspect.safetensors")
    monkeypatch.chdir(tmp_path)
    held: dict[str, Any] = {}
    exec(compile(snippet, str(README), "exec"), held)
    report, comparison = held["report"], held["comparison"]
    (match,) = report.matches
    assert (match.model, match.link, match.relation) == ("acme/model", Link.LINEAGE, Relation.FINE_TUNED)
    assert match.confidence is Confidence.CERTAIN
    assert comparison.log10_p < -12
    assert capsys.readouterr().out.startswith("match - 1 match(es)\nacme/model lineage fine-tuned certain\n")
    assert (tmp_path / "elsewhere").is_dir()


def test_code_blocks_are_80_columns_wide() -> None:
    for page in WRITTEN:
        for _, text in _BLOCK.findall(page.read_text()):
            assert [line for line in text.splitlines() if len(line) > 80] == [], page.name


@pytest.mark.parametrize("page", [*WRITTEN, *sorted(DOCS.glob("benchmarks/*.md"))], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if "://" not in link and not link.startswith("#"):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in WRITTEN:
        text = "\n".join([*blocks(page, "sh"), *_SPAN.findall(prose(page))])
        assert set(_TARGET.findall(text)) <= targets, page.name
    assert {"demo", "test"} <= set(_TARGET.findall("\n".join(blocks(README, "sh"))))


def test_the_lineage_benchmark_runs_for_either_family() -> None:
    for family in "ab":
        command = ["make", "--dry-run", "bench-lineage", *([] if family == "a" else [f"FAMILY={family}"])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.findall(r"-m benchmarks\.(\S+) --family (\w)", done.stdout) == [
            ("zoo", family),
            ("lineage.run", family),
        ]
        assert f"`benchmarks/lineage-{family}.md`" in (DOCS / "index.md").read_text()


def test_the_index_lists_every_page() -> None:
    text = (DOCS / "index.md").read_text()
    linked = set(_LINK.findall(text))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked
    made = {page.relative_to(DOCS).as_posix() for page in DOCS.glob("benchmarks/*.md") if "quick" not in page.name}
    assert {page for page in made if f"`{page}`" not in text and page not in linked} == set()


def test_tables_name_every_verdict_confidence_link_and_exit() -> None:
    readme, verdicts = README.read_text(), (DOCS / "verdicts.md").read_text()
    for word in (*Verdict, *Confidence):
        assert f"| `{word}` |" in readme
        assert f"| `{word}` |" in verdicts
    for word in Link:
        assert f"`{word}`" in readme
        assert f"| `{word}` |" in verdicts
    for word in Standing:
        assert f"| `{word}` |" in verdicts
    for status in Exit:
        assert f"| {status.value} |" in readme


def section(page: Path, title: str) -> str:
    return page.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("title", ["Formats", "Limits"])
def test_the_readme_says_of_formats_what_their_page_says(title: str) -> None:
    page = (DOCS / "formats.md").read_text().split("\n## What a path may be")[0] + section(
        DOCS / "formats.md", "Quantised layouts"
    )
    rows = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| ")]
    words = {re.split(r"[\s,:(]", row)[0] for row in rows} - {"format", "layout"}
    assert {"GGUF", "ONNX", "GPTQ", "pickle"} <= words
    text = section(README, title)
    if title == "Formats":
        assert {word for word in words if word not in text} == set()
    else:
        (unread,) = re.findall(r"\*\*Layouts not read:\*\*(.*?)\n- ", text, re.DOTALL)
        assert words & set(re.split(r"[\s,]+", unread)) <= {"TensorFlow"}  # of which frozen graphs are not read


def relation_rows() -> dict[str, list[set[str]]]:
    """For every name in the last column of a table of relations.md: the words in code of the other columns."""
    rows: dict[str, list[set[str]]] = {}
    for line in (DOCS / "relations.md").read_text().splitlines():
        if line.startswith("| ") and "`" in line:
            *cells, cases = line.strip("| ").split(" | ")
            for case in _SPAN.findall(cases):
                rows.setdefault(case, []).append({word for cell in cells for word in _SPAN.findall(cell)})
    return rows


def test_relations_has_every_case_of_the_benchmark_once_and_no_other() -> None:
    rows = relation_rows()
    assert set(rows) == {case.name for case in all_cases()}
    assert {name for name, found in rows.items() if len(found) != 1} == set()


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_relations_says_what_the_benchmark_demands(case: Case) -> None:
    (words,) = relation_rows()[case.name]
    said = words & set(Relation)
    if case.verdict is Truth.MATCH:
        assert said
        assert said <= set(case.relations)
    elif case.verdict is not Truth.NO_MATCH:
        assert case.verdict.value in words
