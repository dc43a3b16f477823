"""Kill processes that register, import and remove at random moments, and look at what is left.

``python -m benchmarks.crash_safety --kills 200``. A worker makes random changes to a registry and says what it begins
and what it has finished; the parent kills it with SIGKILL after a random time. Then a fresh process's view of the
registry must be that of the last finished change, or that of the change that was under way done whole; its files must
be whole, nothing may be left over, and the index must cover every model. Exit status 1 if anything else is found.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.synthetic import small_model
from signatures.codec import decode_vectors
from signatures.index_folder import Tuning
from signatures.indexes import Vectors
from signatures.registry import Registry
from signatures.signature import encode, read_signature, sign, write_signature

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from signatures.records import ModelRecord

MODELS = 12
BUNDLED = 5
ORIGIN = "crash"
State = frozenset[tuple[str, int]]


@dataclass
class Outcome:
    """What happened: ``interrupted`` counts kills inside a change, by kind of change and whether it was done."""

    kills: int = 0
    changes: int = 0
    interrupted: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def prepare(folder: Path) -> None:
    """Write the signatures, and a bundle of some of them, that the workers use."""
    with Registry.open(folder / "source") as source:
        for number in range(MODELS):
            signature = sign(small_model(number))
            write_signature(folder / f"{number}.fpsig", signature)
            if number < BUNDLED:
                source.register(signature, name=f"bundle/m{number}")
        source.export(None, folder / "models.fpbundle")


def run(folder: Path, kills: int, seed: int, longest: float = 0.4) -> Outcome:
    """Kill ``kills`` workers, one after the other, within ``longest`` seconds of their first change."""
    chance = random.Random(seed)
    prepare(folder)
    outcome = Outcome()
    began = time.monotonic()
    identities = {read_signature(folder / f"{number}.fpsig").identity: number for number in range(MODELS)}
    for _ in range(kills):
        lists = outcome.kills % 2 == 1
        done, under_way = _one_kill(folder, chance.randrange(1 << 30), chance.uniform(0, longest), lists=lists)
        outcome.kills += 1
        outcome.changes += len(done)
        _judge(folder, identities, done[-1], under_way, outcome)
    outcome.problems += leftovers(folder / "registry")
    outcome.seconds = time.monotonic() - began
    return outcome


def worker(folder: Path, seed: int) -> None:
    """Change the registry for ever; a line before each change with the state it leads to, and one after it."""
    chance = random.Random(seed)
    signatures = {number: read_signature(folder / f"{number}.fpsig") for number in range(MODELS)}
    numbers = {signature.identity: number for number, signature in signatures.items()}
    registry = Registry.open(folder / "registry")
    state = view(registry, numbers)
    _say("done", "open", state)
    while True:
        word = chance.choice(["register", "register", "register", "replace", "remove", "import", "remove-origin"])
        number = chance.randrange(MODELS)
        name = f"org/m{number}"
        if word == "register":
            after = state | {(name, number)} if name not in dict(state) else state
            _say("begin", word, after)
            if name not in dict(state):
                registry.register(signatures[number], name=name)
        elif word == "replace":
            other = chance.randrange(MODELS)
            after = frozenset(pair for pair in state if pair[0] != name) | {(name, other)}
            _say("begin", word, after)
            registry.register(signatures[other], name=name, replace=True)
        elif word == "remove":
            after = frozenset(pair for pair in state if pair[0] != name)
            _say("begin", word, after)
            if name in dict(state):
                registry.remove(name)
        elif word == "import":
            after = state | {(f"bundle/m{i}", i) for i in range(BUNDLED)}
            _say("begin", word, after)
            registry.import_(folder / "models.fpbundle", ORIGIN)
        else:
            after = frozenset(pair for pair in state if not pair[0].startswith("bundle/"))
            _say("begin", word, after)
            if after != state:
                registry.remove_origin(ORIGIN)
        state = after
        _say("done", word, state)


def view(registry: Registry, numbers: dict[str, int]) -> State:
    """Names in the registry, each with the number of its signature."""
    return frozenset(
        (entry.name, numbers[record.identity]) for record in registry.models() for entry in record.registrations
    )


def _one_kill(folder: Path, seed: int, wait: float, *, lists: bool) -> tuple[list[State], tuple[str, State] | None]:
    """States that a worker finished, and the change (word and resulting state) it was killed in, if any.

    With ``lists`` its index has inverted lists, as that of a large registry has.
    """
    command = [sys.executable, "-m", "benchmarks.crash_safety", "--worker", str(folder), "--seed", str(seed)]
    command += ["--lists"] if lists else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        timer = threading.Timer(wait, process.kill)
        timer.start()
        lines += process.stdout.readlines()
        timer.cancel()
    if process.returncode != -9:
        raise RuntimeError(f"the worker ended by itself with status {process.returncode}")
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    done = [_state(event) for event in events if event["event"] == "done"]
    last = events[-1]
    return done, (last["word"], _state(last)) if last["event"] == "begin" else None


def _judge(
    folder: Path, identities: dict[str, int], before: State, under_way: tuple[str, State] | None, outcome: Outcome
) -> None:
    with Registry.open(folder / "registry", create=False) as registry:
        found = view(registry, identities)
        if under_way is not None:
            word, after = under_way
            if before != after:
                key = f"{word}, {'done' if found == after else 'not done'}"
                outcome.interrupted[key] = outcome.interrupted.get(key, 0) + 1
        allowed = {before} if under_way is None else {before, under_way[1]}
        if found not in allowed:
            outcome.problems.append(f"kill {outcome.kills}: {sorted(found)} is neither before nor after")
        outcome.problems += [f"kill {outcome.kills}: {problem}" for problem in registry.check()]
        outcome.problems += [f"kill {outcome.kills}: {problem}" for problem in unseen(registry)]


def leftovers(folder: Path) -> list[str]:
    """Files that should not be there once a process has registered and made an index after the last kill."""
    with Registry.open(folder, create=False) as registry:
        registry.register(sign(small_model(MODELS)), name="after/kills")
        registry.rebuild_index()
        known = {path for record in registry.models() for path in folder.glob(f"signatures/*/{record.identity[7:]}.*")}
    for index in (folder / kind for kind in Vectors):
        segments = [part["name"] for part in json.loads((index / "index.json").read_text())["segments"]]
        known |= {path for name in segments for path in (index / name).glob("*")}
        known |= {index / name for name in ("index.json", "lock.sqlite3")}
        known |= {index / f"{name}{suffix}" for name in segments for suffix in ("", ".json")}
    known.add(folder / "registry.sqlite3")
    return [f"{path} was left over" for path in sorted(folder.rglob("*")) if path.is_file() and path not in known]


def unseen(registry: Registry) -> list[str]:
    """Registered models that a search for their own vectors does not put first (or tied with the first)."""
    return [
        f"{record.name} is not found by its own vectors"
        for record in registry.models()
        if not (registry.search(vectors_of(registry, record), 1).models == record.id).any(axis=1).all()
    ]


def vectors_of(registry: Registry, record: ModelRecord) -> NDArray[np.float32]:
    """The vectors (m, width) that the index should hold of a model, out of its signature."""
    return decode_vectors(encode(registry.load_signature(record)), path=record.name)[1]


def _say(event: str, word: str, state: State) -> None:
    print(json.dumps({"event": event, "word": word, "state": sorted(state)}), flush=True)


def _state(event: dict[str, list[tuple[str, int]]]) -> State:
    return frozenset((name, number) for name, number in event["state"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lists", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        if options.lists:
            tuning = Tuning(flat_rows=24, backlog_rows=8, merged_rows=300, small_rows=4)
            Tuning.for_memory = lambda *_: tuning  # type: ignore[method-assign]
        worker(options.worker, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), options.kills, options.seed)
    print(f"{outcome.kills} kills after {outcome.changes} finished changes, {outcome.seconds:.0f} s")
    for key, number in sorted(outcome.interrupted.items()):
        print(f"  killed inside {key}: {number}")
    print("\n".join(outcome.problems) or "nothing was lost, nothing was broken, nothing was left over")
    return 1 if outcome.problems or not outcome.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
