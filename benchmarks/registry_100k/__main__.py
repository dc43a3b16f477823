"""Command: fill a registry with synthetic models, and time what users do with it.

Writes ``registry-100k.md`` and ``registry-100k.json`` to OUT. Exit status 1 if one more registration takes a second or
more, or a scan two, beyond fingerprinting.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.registry_100k import digests, make
from benchmarks.registry_100k.report import FAMILY, OF_FAMILY, ONE_BY_ONE, UNKNOWN_LARGE, right, to_markdown
from benchmarks.synthetic import llama_8b, small_model
from signatures.identify import compare_all, scan_suspect
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.signature import decode, sign, signed_bytes, write_signature
from signatures.suspect import Suspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.records import Fingerprint

ROUNDS = 20
TUNED = 24
Times = tuple[float, float]
ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry_100k", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the page and the numbers")
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--work", type=Path, help="folder that keeps the registry (default: a temporary one)")
    parser.add_argument("--no-check", action="store_true", help="leave out fp index check, which reads all signatures")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f}s {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        folder = Path(temporary) if options.work is None else options.work
        result = measured(folder, options.models, report, check=not options.no_check)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "registry-100k.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    page = to_markdown(result)
    (options.out / "registry-100k.md").write_text(page)
    print(page)
    return 0 if right(result) else 1


def measured(folder: Path, models: int, report: Callable[[str], None], *, check: bool) -> dict[str, Any]:
    """Everything, in a folder."""
    place = folder / "registry"
    filled = make.fill(place, models, report)
    result: dict[str, Any] = {"models": models, "filled": filled, "seconds": {}}
    timed = result["seconds"]
    timed["register one more"] = _several(lambda number: _register(place, models + number), ROUNDS)
    report("registered more")
    known = make.model(models // 2)
    timed["scan a registered model"] = _several(lambda _: _scan(place, known), ROUNDS)
    timed["scan an unknown model of 16 matrices"] = _several(lambda n: _scan(place, small_model(10**6 + n)), ROUNDS)
    large = llama_8b()
    timed[UNKNOWN_LARGE] = _several(lambda _: _scan(place, large), 3)
    with Registry.open(place) as registry:
        for name, count, made in (("family", FAMILY, make.member), ("tuned", TUNED, partial(make.tuned, large))):
            with registry.together():
                for number in range(count):
                    registry.register(sign(made(number)), name=f"{name}/model-{number}")
    report("registered families")
    timed[OF_FAMILY] = _several(lambda n: _scan(place, make.member(FAMILY + n)), ROUNDS)
    timed[f"scan a fine-tune of 8B parameters among {TUNED} of its base"] = _several(
        lambda n: _scan(place, make.tuned(large, TUNED + n)), 3
    )
    timed[ONE_BY_ONE] = _several(lambda n: _compare(place, known, n * models // ROUNDS), ROUNDS)
    report("scanned")
    write_signature(folder / "suspect.fpsig", decode(signed_bytes(known)))
    write_signature(folder / "new.fpsig", sign(make.model(2 * models)))
    for words in (
        ("fp scan", "scan", str(folder / "suspect.fpsig")),
        ("fp register", "register", str(folder / "new.fpsig"), "--name", "org/new"),
        ("fp list", "list"),
        ("fp list, one name", "list", "org/new"),
        ("fp show", "show", "org/new"),
        ("fp index status", "index", "status"),
        *((("fp index check", "index", "check"),) if check else ()),
        ("fp remove", "remove", "org/new", "--yes"),
    ):
        once = words[1] == "remove" or "check" in words
        timed[words[0]] = _several(lambda _, words=words: _command(place, words[1:]), 1 if once else 3)
        report(f"{words[0]}: {timed[words[0]]}")
    with Registry.open(place) as registry:
        status = registry.index_status()
        timed["index made anew"] = _several(lambda _: _took(_clock(), registry.rebuild_index()), 1)
    result["index"] = {"vectors": status.vectors, "segments": status.segments, "kinds": dict(status.kinds)}
    result["bytes"] = {
        "database": _size(place.glob("registry.sqlite3*")),
        "signatures": _size(place.glob("signatures/*/*")),
        "index": _size(place.glob("index/**/*")) + _size(place.glob("slices/**/*")),
    }
    report("the index was made anew")
    result["digests"] = digests.fill(folder / "digests", models)
    result["digests"] |= digests.look_up(folder / "digests", models, ROUNDS)
    result["digests"]["insert one"] = digests.insert_one(folder / "digests", models)
    return result


def _clock() -> Times:
    """Seconds now: of the clock, and of the processors in this process and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def _took(since: Times, _done: object = None) -> Times:
    now = _clock()
    return now[0] - since[0], now[1] - since[1]


def _register(place: Path, number: int) -> Times:
    signature = sign(make.model(number))
    started = _clock()
    with Registry.open(place) as registry:
        registry.register(signature, name=f"more/model-{number}")
    return _took(started)


def _scan(place: Path, suspect: Fingerprint) -> Times:
    started = _clock()
    with Registry.open(place) as registry:
        scan_suspect(registry, Suspect(suspect, None), path="suspect", options=ScanOptions())
    return _took(started)


def _compare(place: Path, suspect: Fingerprint, number: int) -> Times:
    """Read one registered signature and compare with it, as a search without an index would with each."""
    with Registry.open(place) as registry:
        model = registry.get(f"org{number % 97}/model-{number}")
        started = _clock()
        compare_all(Suspect(suspect, None), [registry.load_signature(model).fingerprint])
    return _took(started)


def _command(place: Path, words: tuple[str, ...]) -> Times:
    """Of a command, the start of the process included."""
    started = _clock()
    command = [sys.executable, "-m", "cli", *words, "--registry", str(place)]
    done = subprocess.run(command, check=False, capture_output=True, cwd=ROOT)
    if done.returncode not in {0, 1}:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode()[-1000:]}")
    return _took(started)


def _several(once: Callable[[int], Times], rounds: int) -> dict[str, float]:
    """Median and longest of some rounds, each as long as ``once`` says, and the median of the processors' seconds."""
    seconds, work = zip(*(once(number) for number in range(rounds)), strict=True)
    return {"median": float(np.median(seconds)), "longest": max(seconds), "of the processors": float(np.median(work))}


def _size(paths: Any) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
