"""Compares pairs of real pretrained weights whose relation is known, through ``fp compare``, ``register``, ``scan``.

``python -m benchmarks.corpus_pairs [-o docs/benchmarks/corpus.md]`` fetches the weights (500 MB, once) into ``.cache``.
Positive pairs count as passed at ``likely`` or better, negative ones at ``no-match``, in both directions; grey ones are
listed apart. The truth is what the packages say about themselves, and cosines of the matrices.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.corpus import PACKAGES, PROTEINMPNN, SPLICEAI, fetch
from cli.main import run

POSITIVE = (
    ("minilm", "minilm-int8", "quantised, renamed, transposed"),
    ("minilm", "minilm-sre", "fine-tuned"),
    ("minilm-int8", "minilm-sre", "fine-tuned, against the quantised base"),
    ("silero-6-jit", "silero-6-onnx", "converted"),
    ("silero-5-onnx", "silero-6-half", "converted; the file's name and version lie"),
    ("silero-6-onnx", "silero-6-ifless", "converted"),
    ("pnet-torch", "pnet-onnx", "converted"),
    ("rnet-torch", "rnet-onnx", "converted"),
    ("onet-torch", "onet-onnx", "converted"),
)
NEGATIVE = (
    ("silero-6-onnx", "silero-6-half", "trained apart; the basis of the Fourier transform is shared"),
    *((a, b, "trained apart") for a, b in combinations(PROTEINMPNN.files, 2)),
    *((a, b, "trained apart") for a, b in combinations(SPLICEAI.files, 2)),
)
GREY = (("minilm", "minilm-paraphrase", "embeddings of a common ancestor, other layers"),)
_ENOUGH = frozenset({"likely", "certain"})


@dataclass(frozen=True, slots=True)
class Row:
    """What a command said about one suspect and one registered model."""

    registered: str
    suspect: str
    verdict: str
    confidence: str
    relation: str
    link: str
    log10_p: float | None

    @property
    def matched(self) -> bool:
        return self.confidence in _ENOUGH


def command(*arguments: str) -> Any:
    """The JSON that ``fp`` prints for ``arguments``."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run([*arguments, "--format", "json", "-q", "-o", str(result)])
        return json.loads(result.read_text())


def row_of(registered: str, suspect: str, report: dict[str, Any], name: str | None = None) -> Row:
    match = next((m for m in report["matches"] if name is None or m["model"] == name), None)
    if match is None:
        verdict = report["verdict"] if name is None else "no-match"
        return Row(registered, suspect, verdict, "", "", "", None)
    return Row(
        registered, suspect, report["verdict"], match["confidence"], match["relation"], match["link"], match["log10_p"]
    )


def compared(paths: dict[str, Path], a: str, b: str) -> tuple[Row, Row]:
    """``fp compare`` both ways."""

    def one(registered: str, suspect: str) -> Row:
        (report,) = command("compare", str(paths[registered]), str(paths[suspect]))
        return row_of(registered, suspect, report)

    return one(a, b), one(b, a)


def scanned(paths: dict[str, Path], folder: Path) -> dict[str, list[Row]]:
    """``fp scan`` of every file against a registry of all of them: the matches with others, by suspect."""
    registry = str(folder / "registry")
    for name, path in paths.items():
        command("register", str(path), "--name", f"corpus/{name}", "--registry", registry)
    found = {}
    for name, path in paths.items():
        (report,) = command("scan", str(path), "--registry", registry, "--top-k", "50")
        others = [m["model"].removeprefix("corpus/") for m in report["matches"]]
        rows = [row_of(other, name, report, f"corpus/{other}") for other in others if other != name]
        found[name] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent.parent / ".cache")
    arguments = parser.parse_args()
    paths: dict[str, Path] = {}
    for package in PACKAGES:
        paths |= fetch(package, arguments.cache)
    results = {
        label: [(why, *compared(paths, a, b)) for a, b, why in pairs]
        for label, pairs in (("positive", POSITIVE), ("negative", NEGATIVE), ("grey", GREY))
    }
    with tempfile.TemporaryDirectory() as folder:
        scans = scanned(paths, Path(folder))
    page = written(results, scans)
    if arguments.output:
        arguments.output.write_text(page)
    else:
        print(page)


def written(results: dict[str, list[tuple[str, Row, Row]]], scans: dict[str, list[Row]]) -> str:
    """The page."""
    passed = {
        "positive": sum(one.matched and two.matched for _, one, two in results["positive"]),
        "negative": sum(one.verdict == two.verdict == "no-match" for _, one, two in results["negative"]),
    }
    related, unrelated = len(results["positive"]), len(results["negative"])
    lines = [
        "# Real pretrained weights",
        "",
        "Weights that ship inside packages of the Python index, and what `fp compare` says about the pairs whose",
        "relation is known, each in both directions. Made by",
        "`python -m benchmarks.corpus_pairs -o docs/benchmarks/corpus.md`.",
        "",
        f"- {passed['positive']} of {related} related pairs are `likely` or better in both directions.",
        f"- {passed['negative']} of {unrelated} unrelated pairs are `no-match` in both directions.",
        "",
        "## Related",
        "",
        *table(results["positive"]),
        "",
        "## Unrelated",
        "",
        *negatives(results["negative"]),
        "",
        "## Grey: neither a success nor a failure",
        "",
        *table(results["grey"]),
        "",
        f"## Each file scanned against all {len(scans)}, itself included",
        "",
        "Matches with other files; the file itself was always found as identical.",
        "",
        "| suspect | matched | confidence | link | relation |",
        "|---|---|---|---|---|",
    ]
    for name, rows in scans.items():
        lines += [f"| {name} | {r.registered} | {r.confidence} | {r.link} | {r.relation} |" for r in rows]
        if not rows:
            lines.append(f"| {name} | | | | |")
    return "\n".join(lines) + "\n"


def table(pairs: list[tuple[str, Row, Row]]) -> list[str]:
    lines = ["| registered | suspect | truth | verdict | relation | log10 p |", "|---|---|---|---|---|---|"]
    for why, *rows in pairs:
        for row in rows:
            p = "" if row.log10_p is None else f"{row.log10_p:.1f}"
            said = row.confidence or row.verdict
            lines.append(f"| {row.registered} | {row.suspect} | {why} | {said} | {row.relation} | {p} |")
    return lines


def negatives(pairs: list[tuple[str, Row, Row]]) -> list[str]:
    verdicts: Counter[tuple[str, str]] = Counter()
    lines = []
    for why, *rows in pairs:
        for row in rows:
            verdicts[row.registered.split("-")[0], row.verdict] += 1
            if row.verdict != "no-match":
                lines.append(
                    f"- {row.registered} → {row.suspect} ({why}): {row.verdict}, {row.confidence} {row.relation}"
                )
    head = ["| family | verdict | comparisons |", "|---|---|---|"]
    head += [f"| {family} | {verdict} | {count} |" for (family, verdict), count in sorted(verdicts.items())]
    return [*head, "", *(lines or ["None of them was taken for a relative."])]


if __name__ == "__main__":
    main()
