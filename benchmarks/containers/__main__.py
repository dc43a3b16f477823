"""Writes real weights in every container and quantisation by the producing libraries, and asks ``fp`` about them.

``python -m benchmarks.containers --cache .cache --sources UNPACKED --out docs/benchmarks``. MiniLM in full precision
must have equal digests in every container (``fp sketch``) and be ``identical`` or ``reformatted`` (``fp compare``);
quantised it must be found at ``likely`` or better as ``quantised``. SmolLM2-135M is taken from its GGUF file and from
what the ``gguf`` package dequantises that to. ``UNPACKED`` is a folder with the source distributions of gptqmodel 7.7.0
and autoawq 0.2.9; what needs a library that is not there is listed as not run. Exit status 1 if a row fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.containers.plain import PLAIN, State
from benchmarks.containers.quantised import writers
from benchmarks.containers.smollm2 import dequantised
from benchmarks.corpus import MINILM, MINILM_INT8, SMOLLM2, fetch
from benchmarks.corpus_pairs import command
from cli.main import run
from signatures.signature import read_signature

Write = Callable[[State, Path], Path]
_LIBRARIES = (
    "torch", "safetensors", "numpy", "gguf", "onnx", "msgpack", "h5py", "pywhispercpp", "bitsandbytes", "hqq",
    "compressed-tensors",
)  # fmt: skip
_FOUND = frozenset({"likely", "certain"})


@dataclass(frozen=True, slots=True)
class Row:
    """One container: what was said about it, and whether that is what must be said."""

    title: str
    passed: bool | None
    cells: tuple[str, ...]


def sketch(path: Path, signature: Path) -> None:
    """``fp sketch``. Raises ``RuntimeError`` if it fails."""
    status = run(["sketch", str(path), "-o", str(signature), "-q"])
    if status:
        raise RuntimeError(f"fp sketch ended with status {status}")


def digests(signature: Path) -> Counter[bytes]:
    """The digests of the tensors of a signature."""
    return Counter(record.digest for record in read_signature(signature).fingerprint.tensors)


def compared(registered: Path, suspect: Path) -> tuple[str, str, str, float, float]:
    """Confidence, relation, what was undone, similarity and coverage of the suspect, by ``fp compare``."""
    (report,) = command("compare", str(registered), str(suspect))
    if not report["matches"]:
        return report["verdict"], "", "", 0.0, 0.0
    match = report["matches"][0]
    undone = ", ".join(match["undone"])
    return match["confidence"], match["relation"], undone, match["similarity"], match["coverage"]["suspect"]


def plain_row(title: str, write: Write, state: State, base: Path, folder: Path) -> Row:
    """A container in full precision: how many digests are equal."""
    signature = folder / "suspect.fpsig"
    sketch(write(state, folder), signature)
    wanted, found = digests(base), digests(signature)
    equal = (wanted & found).total()
    confidence, relation, undone, _, _ = compared(base, signature)
    passed = equal == wanted.total() and confidence == "certain" and relation in {"identical", "reformatted"}
    return Row(title, passed, (f"{equal} of {wanted.total()}", confidence, relation, undone))


def quantised_row(title: str, write: Write, state: State, base: Path, folder: Path) -> Row:
    """A quantised form: whether it is found."""
    confidence, relation, undone, similarity, coverage = compared(base, write(state, folder))
    passed = confidence in _FOUND and relation == "quantised"
    return Row(title, passed, (confidence, relation, undone, f"{similarity:.4f}", f"{coverage:.0%}"))


def rows(
    one: Callable[[str, Write, State, Path, Path], Row], writers: dict[str, Write], state: State, base: Path
) -> list[Row]:
    found = []
    for title, write in writers.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = one(title, write, state, base, Path(folder))
            except (ImportError, FileNotFoundError) as error:
                row = Row(title, None, (f"not run: {str(error).splitlines()[0][:80]}",))
            except Exception:  # noqa: BLE001 - a library that fails is a row like any other
                traceback.print_exc()
                row = Row(title, False, ("failed",))
        print(title, *row.cells, sep=" | ", file=sys.stderr, flush=True)
        found.append(row)
    return found


def smollm2(path: Path, folder: Path) -> tuple[list[Row], list[str]]:
    """SmolLM2 compared with its dequantised weights both ways; and what ``fp inspect`` says about both."""
    other = dequantised(path, folder)
    told = []
    for title, one in (("GGUF, as it is", path), ("safetensors, dequantised", other)):
        (seen,) = command("inspect", str(one))
        roles = ", ".join(f"{role} {count}" for role, count in sorted(seen["roles"].items()))
        told.append(f"| {title} | {seen['canonical_tensors']} | {seen['layers']} | {seen['width']} | {roles} |")
    signatures = []
    for number, one in enumerate((path, other)):
        signatures.append(folder / f"{number}.fpsig")
        sketch(one, signatures[-1])
    equal = (digests(signatures[0]) & digests(signatures[1])).total()
    same = told[0].partition("|")[2].split("|")[1:] == told[1].partition("|")[2].split("|")[1:]
    found = []
    for title, (a, b) in (
        ("GGUF registered, safetensors scanned", signatures),
        ("safetensors registered, GGUF scanned", signatures[::-1]),
    ):
        confidence, relation, undone, similarity, _ = compared(a, b)
        passed = same and confidence == "certain" and relation in {"reformatted", "quantised"}
        cells = (f"{equal} of {digests(a).total()}", confidence, relation, undone, f"{similarity:.4f}")
        found.append(Row(title, passed, cells))
    return found, told


def table(rows: list[Row], heads: tuple[str, ...]) -> list[str]:
    lines = [f"| {' | '.join(heads)} | |", f"|{'---|' * len(heads)}---|"]
    for row in rows:
        cells = [*row.cells, *[""] * (len(heads) - 1 - len(row.cells))]
        mark = "" if row.passed else "**failed**" if row.passed is False else "not run"
        lines.append(f"| {row.title} | {' | '.join(cells)} | {mark} |")
    return lines


def versions() -> str:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} (absent)")
    return ", ".join(found)


def page(plain: list[Row], quantised: list[Row], real: list[Row], llm: list[Row], told: list[str]) -> str:
    """The page."""
    counts = {
        name: (sum(row.passed is True for row in rows), sum(row.passed is not None for row in rows))
        for name, rows in (("plain", plain), ("quantised", quantised + real))
    }
    not_run = [row.title for row in [*plain, *quantised, *llm] if row.passed is None]
    return "\n".join([
        "# Containers and quantised forms of real weights",
        "",
        "One set of weights, written by the libraries that produce such files, and what `fp` says about each. Made by",
        "`make bench-containers`.",
        "",
        f"- MiniLM in full precision: {counts['plain'][0]} of {counts['plain'][1]} containers have all digests equal.",
        f"- MiniLM quantised: {counts['quantised'][0]} of {counts['quantised'][1]} forms are found at `likely` or "
        "better, as `quantised`.",
        f"- SmolLM2-135M, GGUF and dequantised: {sum(row.passed is True for row in llm)} of {len(llm)} directions.",
        *([f"- Not run: {', '.join(not_run)}."] if not_run else []),
        "",
        f"Libraries: {versions()}; packing functions of gptqmodel 7.7.0 and autoawq 0.2.9.",
        "",
        "## MiniLM in full precision",
        "",
        "All 103 weights of all-MiniLM-L6-v2 (the buffer `position_ids`, which most containers do not have, left out).",
        "Equal digests are counted between the signatures of `fp sketch`; the rest is `fp compare`.",
        "",
        *table(plain, ("container", "equal digests", "confidence", "relation", "undone")),
        "",
        "## MiniLM quantised",
        "",
        "GGUF types that llama.cpp quantises are written by its own library (ggml, as pywhispercpp brings it along).",
        "Rows of 384 are not made of blocks of 256: as llama.cpp does, such matrices take another type (IQ4_NL, …)",
        "and only those of 1,536 columns the one that is named. In the layouts of Hugging Face's models the linear",
        "layers are quantised and the embeddings are in half precision.",
        "",
        *table(real + quantised, ("form", "confidence", "relation", "undone", "similarity", "coverage")),
        "",
        "## SmolLM2-135M",
        "",
        "The Q4_1 file of a package, and what the `gguf` package dequantises it to, under the names and in the order",
        "of rows of Hugging Face.",
        "",
        "| file | tensors | layers | width | roles |",
        "|---|---|---|---|---|",
        *told,
        "",
        *table(llm, ("pair", "equal digests", "confidence", "relation", "undone", "similarity")),
    ]) + "\n"  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--sources", type=Path, default=Path(".cache/sources"))
    parser.add_argument("--out", type=Path, help="folder of the page (default: standard output)")
    parser.add_argument("--only", default="", help="only rows whose titles hold this text")
    options = parser.parse_args()
    minilm = fetch(MINILM, options.cache)["minilm"]
    state = {name: tensor for name, tensor in load_file(minilm).items() if tensor.dtype is torch.float32}

    def chosen(writers: dict[str, Write]) -> dict[str, Write]:
        return {title: write for title, write in writers.items() if options.only.lower() in title.lower()}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base.fpsig"
        sketch(PLAIN["safetensors"](state, folder), base)
        int8 = fetch(MINILM_INT8, options.cache)["minilm-int8"]
        published = {"ONNX, int8, as published by others": lambda _state, _folder: int8}
        plain = rows(plain_row, chosen(PLAIN), state, base)
        real = rows(quantised_row, chosen(published), state, base)
        quantised = rows(quantised_row, chosen(writers(options.sources)), state, base)
        llm, told = smollm2(fetch(SMOLLM2, options.cache)["smollm2"], folder) if not options.only else ([], [])
    text = page(plain, quantised, real, llm, told)
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "containers.md").write_text(text, "utf-8")
    return 1 if any(row.passed is False for row in [*plain, *real, *quantised, *llm]) else 0


if __name__ == "__main__":
    sys.exit(main())
