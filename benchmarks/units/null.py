"""Command: how often the tests of networks without a residual stream are wrong between networks trained apart.

Exit status 1 if, for any test and stratum, "the share of p <= alpha is at most alpha" is refuted, or if after
correction an unrelated pair reaches ``possible``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from msgspec.structs import replace
from threadpoolctl import threadpool_limits

from benchmarks.error_rates.__main__ import failures
from benchmarks.error_rates.corrected import smallest_corrected
from benchmarks.error_rates.procedures import BROKEN as BROKEN_COINS
from benchmarks.error_rates.procedures import TRUE
from benchmarks.error_rates.rates import Sample, table
from benchmarks.error_rates.replicates import FLIPPED, flip
from benchmarks.error_rates.report import as_mapping, markdown, plot, plot_name
from benchmarks.units.populations import POPULATIONS, members, quick, real, relatives, strangers
from benchmarks.units.run import REGISTERED
from fingerprint.comparing.calibration import concordance_log10_p
from fingerprint.comparing.gauge import FrameMatch, compare_gauge
from fingerprint.vocabulary import Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.error_rates.comparisons import Samples
    from benchmarks.error_rates.procedures import Procedures
    from benchmarks.units.populations import Pair
    from fingerprint.comparing.coins import CoinToss
    from fingerprint.comparing.gauge import Gauge
    from fingerprint.records import Fingerprint, NeuronSample

STEM = "units-errors"
EVEN = "even"
LAYER = "coins, one layer"
NETWORK = "coins, all layers"
FRAMES = (Frame.UNITS, Frame.FIXED)
RELATIVES, FLIPS = 10, 200
MEANING = {
    EVEN: "The concordance of all layers of two networks, against the frozen calibration. Largest: concordant units, "
    "of those that were compared; layers count alike, however many units they have.",
    LAYER: "The coins of one registered layer, by the frame in which its units found their partners: `units`, which "
    "`gauge` looks at, or `fixed`, which `rows` does. Largest: the sum of coins in standard deviations, and how many "
    "coins it is made of.",
    NETWORK: "The coins of all layers of a network by Fisher's method, by frame. Largest: the sum of one layer's coins "
    "in standard deviations, and the number of coins of all layers.",
}
ABOUT = """Uncorrected p-values of the tests on hidden units ([method](../method.md)) between networks that share no
training: convolutions with batch norms on drawn pictures, in chains and in residual branches, LSTM and GRU cells of
two levels on text, and real weights.
A cell is the share of comparisons with p at most alpha, and its 95% interval by bootstrap over the networks (over
replicates in the strata of those). The claim is that the share is at most alpha. A row is marked where that is refuted:
by the bootstrap and the binomial law together, each at level .001. Then, and if after correction an unrelated pair
reaches `possible`, the command exits with status 1; `--break` runs deliberately broken tests, which must.

Registered networks are as a signature file holds them. Suspects are rewritten so that they compute the same
(convolutions permuted, rescaled, with their norms folded; cells permuted, with embeddings rotated), then damaged as the
stratum says, and have random names; real weights are as they are. All ordered pairs of different seeds are compared,
and of different recipes those of intact suspects. "Other cells" are an LSTM and a GRU. The constants of `even` were
read off the networks of the stratum that says so, other seeds of the three other shapes of convolutions, and some of
the LSTMs; all other networks of convolutions were trained afterwards.

Coins flipped: units of a registered network negated at random, against a permuted copy of it with 4 bits. That leaves
nothing to be found even in a copy, so every replicate is a draw from the null."""
WITHOUT_CORPUS = "The real weights were left out: no `--corpus` was given."
WRITTEN = "Written by `python -m benchmarks.units.null`"


@dataclass(slots=True)
class Found:
    """P-values by test and stratum, and the largest statistic of each: what it is, and of how many units or coins."""

    samples: Samples = field(default_factory=dict)
    largest: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def add(self, key: tuple[str, str], pair: Pair, log10_p: Sequence[float], largest: tuple[float, int]) -> None:
        """Add the comparisons of one pair."""
        _, registered, suspect = pair
        sample = self.samples.setdefault(key, Sample(replicates=key[1].startswith(FLIPPED)))
        sample.add(registered.root, suspect.root, np.array(log10_p))
        if log10_p:
            self.largest[key] = max(self.largest.get(key, (0.0, 0)), largest)


class _ExpectedRarely(FrameMatch, frozen=True):
    """Concordance as if a twentieth of the units that were seen to agree between unrelated networks were expected."""

    @property
    def log10_p(self) -> float:
        count, layers = self.concordance * self.neurons, len(self.matches)
        return concordance_log10_p(self.frame, count, self.neurons // 20, gated=self.gated, layers=layers / 20)


def _gauge_expecting_little(registered: Fingerprint, suspect: Fingerprint, usable: Any, *, own_frames: bool) -> Gauge:
    found = compare_gauge(registered, suspect, usable, own_frames=own_frames)
    frames = (_ExpectedRarely(one.frame, one.matches, one.gated, one.theirs) for one in found.frames)
    return replace(found, frames=tuple(frames))


BROKEN: Mapping[str, Procedures] = {
    "even-twentieth": dataclasses.replace(TRUE, gauge=_gauge_expecting_little),
    "coins-weights": BROKEN_COINS["coins-weights"],
    "coins-one-sided": BROKEN_COINS["coins-one-sided"],
}
"""By name: what ``--break`` runs instead of the product's functions. Each must make the command fail."""


def run(pairs: Sequence[Pair], copies: Sequence[Pair], broken: str | None, flips: int) -> tuple[Found, dict[str, Any]]:
    """All samples, ``flips`` replicates of each of the ``copies`` among them, and what goes beside the table."""
    procedures = TRUE if broken is None else BROKEN[broken]
    # The products are small: threads of BLAS would only wait for each other.
    with threadpool_limits(1, "blas"):
        found = collect(pairs, procedures)
        replicate(found, copies, procedures, flips)
        extra = smallest_corrected(pairs, REGISTERED, own_frame_pairs=0) if broken is None else {}
    return found, {"networks": len({one.root for _, *both in pairs for one in both}), "broken": broken or "", **extra}


def collect(pairs: Sequence[Pair], procedures: Procedures) -> Found:
    """The p-values of all tests as the product computes them before it corrects them."""
    found = Found()
    usable: dict[str, list[NDArray[np.bool_]]] = {}
    for pair in pairs:
        stratum, registered, suspect = pair
        if registered.id not in usable:
            usable[registered.id] = procedures.usable(registered.registered.neurons)
        masks = usable[registered.id]
        frame = procedures.gauge(registered.registered, suspect.suspect, masks, own_frames=False).frame(Frame.UNITS)
        if frame is not None:
            largest = round(frame.concordance * frame.neurons, 1), frame.neurons
            found.add((EVEN, stratum), pair, [min(0.0, frame.log10_p)], largest)
        _add_coins(found, pair, registered.registered.neurons, masks, procedures)
    return found


def replicate(found: Found, pairs: Sequence[Pair], procedures: Procedures, flips: int) -> None:
    """Add ``flips`` replicates of each pair, the registered network's units negated at random."""
    for number, (recipe, registered, suspect) in enumerate(pairs):
        rng = np.random.default_rng([5, number])
        # Which coins are usable is decided blind to the flips: once for all replicates.
        masks = procedures.usable(registered.registered.neurons)
        for _ in range(flips):
            flipped = flip(registered.registered.neurons, rng, together=False)
            _add_coins(found, (f"{FLIPPED}, {recipe}", registered, suspect), flipped, masks, procedures)


def _add_coins(
    found: Found, pair: Pair, ours: Sequence[NeuronSample], masks: Sequence[NDArray[np.bool_]], procedures: Procedures
) -> None:
    if not any(mask.any() for mask in masks):
        return
    stratum, _, suspect = pair
    for frame in FRAMES:
        matches = procedures.match(ours, suspect.suspect.neurons, frame)
        together = procedures.toss(matches, masks)
        single = [one for match in matches if (one := procedures.toss([match], masks)).coins]
        for test, tosses in ((LAYER, single), (NETWORK, [together] if together.coins else [])):
            largest = max((_largest(one) for one in tosses), default=(0.0, 0))
            found.add((test, f"{stratum} ({frame})"), pair, [one.log10_p for one in tosses], largest)


def _largest(tossed: CoinToss) -> tuple[float, int]:
    return round(tossed.largest, 2), tossed.coins


def curves(found: Found, test: str) -> Samples:
    """The samples of one test for its plot, the damages of one recipe joined."""
    joined: Samples = {}
    for (name, stratum), sample in found.samples.items():
        if name == test:
            one = joined.setdefault((test, stratum.partition(": ")[0]), Sample())
            one.log10_p += sample.log10_p
    return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 if no share is refuted and no unrelated pair reaches ``possible``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.units.null", description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True, help="where the networks are, or are trained to")
    parser.add_argument("--corpus", type=Path, help="where the real weights are, or are fetched to")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--break", dest="broken", choices=sorted(BROKEN), help="run a deliberately broken test")
    parser.add_argument("--quick", action="store_true", help="fewer networks and replicates")
    options = parser.parse_args(argv)
    started = time.monotonic()
    torch.set_num_threads(1)
    populations, most, flips = (quick(POPULATIONS), 1, 20) if options.quick else (POPULATIONS, RELATIVES, FLIPS)
    trained = members(options.zoo, populations)
    pairs = strangers(trained) + (real(options.corpus) if options.corpus else [])
    print(f"{len(trained)} networks measured after {time.monotonic() - started:.0f} s", flush=True)
    found, extra = run(pairs, relatives(trained, most), options.broken, flips)
    today = datetime.now(UTC).date().isoformat()
    about = [ABOUT, *([] if options.corpus else [WITHOUT_CORPUS]), f"{extra['networks']} networks. {WRITTEN}, {today}."]
    wrong = _write(found, {"about": "\n\n".join(about), "date": today, **extra}, options.out)
    print(f"{time.monotonic() - started:.0f} s; " + ("failed: " + "; ".join(wrong) if wrong else "passed"))
    return 1 if wrong else 0


def _write(found: Found, extra: Mapping[str, Any], out: Path) -> list[str]:
    """Write page, data and plots; what the command fails for."""
    shares = table(found.samples)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{STEM}-broken-{extra['broken']}" if extra["broken"] else STEM
    mapping = as_mapping(shares, extra)
    for row in mapping["rows"]:
        row["largest"], row["of"] = found.largest[row["test"], row["stratum"]]
    (out / f"{stem}.json").write_text(json.dumps(mapping, indent=1) + "\n")
    largest = {key: f"{statistic:g} of {of}" for key, (statistic, of) in found.largest.items()}
    title = "Error rates of networks without a residual stream"
    text = markdown(shares, extra, stem, title=title, meaning=MEANING, largest=largest)
    (out / f"{stem}.md").write_text(text)
    for test in dict.fromkeys(test for test, _ in shares):
        plot(curves(found, test), out / plot_name(stem, test), test)
    print(text)
    return failures(shares, extra)


if __name__ == "__main__":
    sys.exit(main())
