"""Command: forge, frame and evade; what is reported, what it costs, and what a secret key says. Writes the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from benchmarks.adversarial import attacks
from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.zoo.recipes import Spec, family
from benchmarks.zoo.store import build, load_weights
from benchmarks.zoo.train import validation_loss
from fingerprint.assemble import fingerprint
from fingerprint.checkpoint import open_checkpoint
from fingerprint.undoing.undo import undo
from signatures import Registry, scan_path, sign
from signatures.keyed import Key, keyed_section, make_key, with_section
from signatures.keyed_check import check_scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.zoo.models import Shape, Weights
    from signatures.report import Report

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "adversarial.md"
STEM = "a-llama-128"
HEAD = """# Forgery and evasion

Small trained models (`make bench-adversarial`): V is the victim, U an unrelated model of the same recipe from another
seed. *Change*: norm of the change over that of the weights; free rewrites before it do not count. *Entries*: share of
entries changed. *Loss*: validation loss in nats a token of what was changed, before and after. *Key*: what the victim's
secret key says ([verdicts](../verdicts.md)). *Deep*: what `fp compare --deep` of V and the changed model leaves of the
tensors that it holds out, and its control. Models are narrow, which makes changes through samples dearer than in
practice: see the last section.
"""


NEXT = """
Whatever stands around it, a registered model of which nine tenths are in the suspect is found as lineage; and where
that is not so, neurons that were split count once and idle ones not at all ([method](../method.md)). What is left to an
evader who widens:

- **Leave out more than a tenth of V, and add more than is left.** That is a shared component, as it would be if V's
  layers were a part of a new model. What it costs is what leaving out costs.
- **Large neurons that never fire.** Weights do not show it, so that they count. They hide nothing where V's own neurons
  can still be matched one by one, as in the rows above of dead neurons that write a tenth.
- **Rewrite everything, pad with neurons that read much, and replace all names.** Not found: gains are told by what
  reads them where names do not tell, and this noise drowns it. The key is not helped either. With V's names, or without
  the rewrite, the same padding is found.
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """What is done, and the weights before (after free rewrites) and after; their ``shape``, if it is another."""

    name: str
    before: Weights
    after: Weights
    shape: Shape | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """The folder, the key, and how a loss is computed."""

    folder: Path
    key: Key
    loss: Callable[[Weights, Shape | None], float]

    def saved(self, weights: Weights, name: str) -> Path:
        path = self.folder / f"{name}.safetensors"
        save_file({key: w.contiguous() for key, w in weights.items()}, path)
        return path

    def registry(self, weights: Weights, name: str, *, keyed: bool) -> Path:
        """A registry of one model."""
        place = self.folder / f"registry-{name}"
        path = self.saved(weights, f"registered-{name}")
        with open_checkpoint(path) as checkpoint, Registry.open(place) as registry:
            signature = sign(fingerprint(checkpoint))
            if keyed:
                signature = with_section(signature, keyed_section(checkpoint, self.key, signature))
            registry.register(signature, name=f"x/{name}")
        return place

    def deep(self, victim: Weights, other: Weights) -> str:
        """Held-out residual of a deep comparison with the victim, and its control."""
        first, second = self.saved(victim, "deep-a"), self.saved(other, "deep-b")
        with open_checkpoint(first) as a, open_checkpoint(second) as b:
            held = undo(a, b)[0].held_out
        return "-" if held is None else f"{held.residual:.2g} of {held.control:.2f}"

    def scanned(self, registry: Path, suspect: Weights, *, keyed: bool) -> Report:
        path = self.saved(suspect, "suspect")
        with Registry.open(registry) as opened:
            report = scan_path(opened, path)
            return check_scan(opened, report, path, self.key) if keyed else report


def row(attack: Attack, report: Report, bench: Bench, victim: Weights) -> str:
    change, entries = attacks.changed(attack.before, attack.after)
    losses = f"{bench.loss(attack.before, attack.shape):.2f} → {bench.loss(attack.after, attack.shape):.2f}"
    said = "no-match"
    if report.matches:
        match = report.matches[0]
        tests = {item.test: item.log10_p for item in match.evidence}
        best = min((test for test in tests if test != "sketch"), key=lambda test: tests[test], default="sketch")
        said = f"{report.verdict.value}: {match.link.value}, {match.confidence.value}, 10^{match.log10_p:.0f} ({best})"
    if any("public signature" in note for note in report.notes):
        said += "; contradiction noted"
    deep = bench.deep(victim, attack.after)
    key = "-"
    if report.keyed:
        check = report.keyed[0]
        key = f"confirmed, 10^{check.log10_p:.0f}" if check.confirmed else f"not confirmed, 10^{check.log10_p:.1f}"
    return f"| {attack.name} | {said} | {key} | {deep} | {change:.3f} | {entries:.1%} | {losses} |"


def loss_of(spec: Spec, weights: Weights, shape: Shape | None) -> float:
    """Validation loss of weights of the spec, or of another shape."""
    return validation_loss(spec if shape is None else replace(spec, shape=shape), weights)


TABLE = "| attack | reported | key | deep | change | entries | loss |\n|---|---|---|---|---|---|---|"


def forged(victim: Weights, other: Weights, shape: Spec) -> list[Attack]:
    """U doctored and registered; then V, which is innocent, is scanned."""
    flip, permute, rotate = (
        way(other, shape.shape, victim)
        for way in (attacks.flipped_towards, attacks.permuted_towards, attacks.rotated_towards)
    )
    pulled = [Attack(f"U with {share:.0%} of V mixed in", other, attacks.pulled(other, victim, share))
              for share in (0.1, 0.2, 0.35, 0.5)]  # fmt: skip
    sketch = attacks.sketched_as(other, victim.__getitem__, slices=False, neurons=False)
    slices = attacks.sketched_as(other, victim.__getitem__, slices=True, neurons=False)
    return [
        Attack("U as it is", other, other),
        Attack("U, signs flipped towards V (free)", flip, flip),
        Attack("U, neurons permuted and flipped towards V (free)", permute, permute),
        Attack("U, rotated, permuted and flipped towards V (free)", rotate, rotate),
        *pulled,
        Attack("U with V's tensor sketches, least change", other, sketch),
        Attack("U with V's sketches, rows and columns, least change", other, slices),
        Attack("V itself, registered by a thief", victim, victim),
    ]


def framed(victim: Weights, other: Weights, shape: Spec) -> list[Attack]:
    """U changed to match the registered V."""
    permuted = attacks.permuted_towards(other, shape.shape, victim)
    as_victim = partial(attacks.sketched_as, other, victim.__getitem__)
    gates = ("gate_proj.weight",)
    return [
        Attack("U, neurons permuted and flipped towards V (free)", permuted, permuted),
        Attack("8 sampled rows of V in one kind of matrix (gate)", other,
               attacks.with_sampled_rows(other, victim, 8, gates)),
        Attack("64 sampled rows of V in one kind of matrix (gate)", other,
               attacks.with_sampled_rows(other, victim, 64, gates)),
        Attack("64 sampled rows of V in one matrix", other,
               attacks.with_sampled_rows(other, victim, 64, ("0.mlp.gate_proj.weight",))),
        Attack("V's tensor sketches, least change", other, as_victim(slices=False, neurons=False)),
        Attack("V's sketches, rows and columns, least change", other, as_victim(slices=True, neurons=False)),
        Attack("that, and coordinates of all neurons", other, as_victim(slices=True, neurons=True)),
        Attack("20% of V mixed in", other, attacks.pulled(other, victim, 0.2)),
        Attack("50% of V mixed in", other, attacks.pulled(other, victim, 0.5)),
    ]  # fmt: skip


def evading(victim: Weights, other: Weights, shape: Spec) -> list[Attack]:
    """V changed so that it does not match V."""
    everything = next(one for one in rewrites(shape.shape.style) if one.name == "all-but-vocabulary")
    laundered = rewrite(victim, shape.shape, everything, "adversarial").tensors
    scrambled = next(one for one in rewrites(shape.shape.style) if one.name == "signs-scrambled")
    signs = rewrite(victim, shape.shape, scrambled, "adversarial").tensors
    split = attacks.split_neurons(victim, shape.shape, "split")
    padded = attacks.padded_neurons(victim, shape.shape, "padded", 3)
    as_other = partial(attacks.sketched_as, victim, other.__getitem__)
    both = attacks.split_neurons(laundered, shape.shape, "split")
    hidden = attacks.padded_neurons(laundered, shape.shape, "padded", 3)
    nearly, less = (attacks.padded_neurons(victim, shape.shape, "padded", 3, down) for down in (1e-2, 1e-1))
    heads, with_heads = attacks.with_junk_heads(victim, shape.shape, "heads", 3)
    layers, with_layers = attacks.with_dead_layers(victim, shape.shape, "layers", 2)
    faint, _ = attacks.with_dead_layers(victim, shape.shape, "layers", 2, 1e-2)
    wider, with_stream = attacks.with_wider_stream(victim, shape.shape, "stream", 3)
    junk, with_junk = attacks.with_dead_layers(
        attacks.padded_neurons(heads, with_heads, "padded", 3), with_heads, "layers", 1
    )
    return [
        Attack("signs of neurons scrambled (free)", signs, signs),
        Attack("everything rewritten (free)", laundered, laundered),
        Attack("every neuron split in two (free, wider)", split, split),
        Attack("three dead neurons for each, larger (free, wider)", padded, padded),
        Attack("everything rewritten, then split (free, wider)", both, both),
        Attack("everything rewritten, then padded so (free, wider)", hidden, hidden),
        Attack("three heads that nothing reads for each (free, wider)", heads, heads, with_heads),
        Attack("two dead layers behind each (free, deeper)", layers, layers, with_layers),
        Attack("a stream four times as wide, nothing in it (free, wider)", wider, wider, with_stream),
        Attack("dead neurons, heads and layers (free, wider, deeper)", junk, junk, with_junk),
        Attack("dead neurons that write a hundredth", padded, nearly),
        Attack("dead neurons that write a tenth", padded, less),
        Attack("dead layers that write a hundredth", layers, faint, with_layers),
        Attack("one entry of each matrix 100 times the largest", victim, attacks.with_huge_entries(victim, 100.0)),
        Attack("noise of half of the deviation", victim, attacks.with_noise(victim, 0.5, "n")),
        Attack("noise as large as the weights", victim, attacks.with_noise(victim, 1.0, "n")),
        Attack("noise twice as large", victim, attacks.with_noise(victim, 2.0, "n")),
        Attack("everything rewritten, noise of a fifth", laundered, attacks.with_noise(laundered, 0.2, "n")),
        Attack("sketches of U, least change", victim, as_other(slices=False, neurons=False)),
        Attack("sketches, rows and columns of U, least change", victim, as_other(slices=True, neurons=False)),
        Attack("that, and coordinates of all neurons", victim, as_other(slices=True, neurons=True)),
    ]


def tail() -> str:
    """What these changes cost at other widths, from the number of directions that are sampled."""
    lines = [
        "## At other widths\n",
        "Of a random matrix of the given size, the norm of the least change that replaces its samples, over that of "
        "the matrix: it falls with the width, loss does too, and a key is then what is left to tell.\n",
        "| rows x columns | sketch | and sampled rows and columns | and coordinates of all neurons |",
        "|---|---|---|---|",
    ]
    for size in ((352, 128), (1024, 512), (4096, 2048)):
        random = torch.Generator().manual_seed(1)
        one, two = (torch.randn(size, generator=random) for _ in range(2))
        found = []
        for slices, neurons in ((False, False), (True, False), (True, True)):
            name = "layers.0.mlp.gate_proj.weight"
            made = attacks.sketched_as({name: one}, {name: two}.__getitem__, slices=slices, neurons=neurons)
            found.append(f"{attacks.changed({name: one}, made)[0]:.3f}")
        lines.append(f"| {size[0]} x {size[1]} | " + " | ".join(found) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adversarial", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / ".cache" / "zoo")
    parser.add_argument("--quick", action="store_true", help="on the tiny models of the quick zoo")
    parser.add_argument("--only", action="append", metavar="GLOB", help="attacks, printed and not written")
    parser.add_argument("-o", "--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.process_time()
    stem = "quick-a-llama-48" if options.quick else STEM
    specs = family("a", quick=options.quick)
    build(options.zoo, specs, [f"{stem}-A", f"{stem}-B"], lambda line: print(line, file=sys.stderr))
    spec = next(one for one in specs if one.id == f"{stem}-A")
    victim, other = (load_weights(options.zoo, f"{stem}-{model}") for model in "AB")
    lines = [HEAD]

    def wanted(found: list[Attack]) -> list[Attack]:
        globs = options.only or ["*"]
        return [one for one in found if any(fnmatchcase(one.name, glob) for glob in globs)]

    def add(attack: Attack, report: Report) -> None:
        lines.append(row(attack, report, bench, victim))
        print(lines[-1], file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), make_key(bytes(range(7, 71))), partial(loss_of, spec))
        lines += ["## A forged registration: does a scan of V accuse it?\n", TABLE]
        for number, attack in enumerate(wanted(forged(victim, other, spec))):
            place = bench.registry(attack.after, f"forged{number}", keyed=False)
            add(attack, bench.scanned(place, victim, keyed=False))
        place = bench.registry(victim, "victim", keyed=True)
        lines += ["", "## A framed innocent: is U taken for the registered V?\n", TABLE]
        for attack in wanted(framed(victim, other, spec)):
            add(attack, bench.scanned(place, attack.after, keyed=True))
        lines += ["", "## Evasion: is V still found?\n", TABLE]
        for attack in wanted(evading(victim, other, spec)):
            add(attack, bench.scanned(place, attack.after, keyed=True))
    if options.only:
        print("\n".join(lines))
        return 0
    lines += [NEXT, tail(), f"{time.process_time() - started:.0f} s of CPU time, x86_64, 2 cores."]
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
