"""Command: compare suspects with one model by this program and by published tools; writes one table.

Each tool is a command of another environment (``--tool modeldna=PATH``); one that is not given is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from benchmarks.lineage import derive_ops as ops
from benchmarks.observed import environment
from benchmarks.rewrites.cases import rewrite, rewrites
from benchmarks.zoo.models import Shape, generator
from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import build, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.zoo.models import Weights

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "peers.md"
STEM = "a-llama-128"
TIMEOUT = 600
HEAD = """# Side by side

Published tools and this one on equal files (`make bench-peers`; what users do on a command line, each suspect compared
with model A alone). A tool *finds* a suspect when it says that the two are related: a match of fp at `likely` or
better, a verdict of modelDNA other than NO_MATCH, INSUFFICIENT and SAME_FAMILY_UNRESOLVED, a provenance decision of
"Confirmed" or "High" of Cisco's kit. Everything else is *missed*, errors and abstentions apart. Strangers that are
found are *false*.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A suspect: what was done, whether it descends from A, its tensors; ``bare``: without configuration."""

    name: str
    related: bool
    tensors: Weights
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool said: ``found``, ``missed``, ``abstained`` or ``error``, in its words; CPU seconds and peak MB."""

    outcome: str
    words: str
    seconds: float
    megabytes: float


def cases(zoo: Path, stem: str, shape: Shape) -> Iterator[Case]:
    ours = load_weights(zoo, f"{stem}-A")

    def rewritten(name: str, model: Weights) -> Weights:
        case = next(one for one in rewrites(shape.style) if one.name == name)
        return rewrite(model, shape, case, "peers").tensors

    tuned, continued = (load_weights(zoo, f"{stem}-{model}") for model in ("A-ftx", "A-cont"))
    random = generator("peers")
    yield Case("A in bf16", True, {name: w.to(torch.bfloat16) for name, w in ours.items()})
    yield Case("fine-tuned", True, tuned)
    yield Case("continued as long as the first training", True, continued)
    yield Case("4 bits", True, ops.quantise(ours, shape.style, 4, 32, symmetric=False))
    yield Case("half of the weights zeroed", True, ops.prune_small(ours, 0.5))
    yield Case("noise of half of the deviation", True, ops.add_noise(ours, 0.5, random))
    yield Case("merged with a fine-tune", True, ops.linear((ours, tuned), (0.5, 0.5)))
    yield Case("every second layer dropped", True, ops.take_layers([(ours, i) for i in range(0, 4, 2)], ours))
    renamed = {f"t{number}": ours[name] for number, name in enumerate(sorted(ours, key=lambda one: one[::-1]))}
    yield Case("renamed, no configuration", True, renamed, bare=True)
    shard = dict(list(ours.items())[: len(ours) // 2])
    yield Case("one shard of two, no configuration", True, shard, bare=True)
    yield Case("neurons permuted", True, rewritten("neurons-permuted", ours))
    yield Case("residual stream rotated", True, rewritten("rotated", ours))
    yield Case("permuted, rescaled, folded, rotated", True, rewritten("laundered", ours))
    yield Case("that, fine-tuned before", True, rewritten("laundered", tuned))
    yield Case("everything rewritten, signs too", True, rewritten("all-but-vocabulary", ours))
    yield Case("B: same recipe, another seed", False, load_weights(zoo, f"{stem}-B"))
    yield Case("B fine-tuned", False, load_weights(zoo, f"{stem}-B-ftx"))
    yield Case("B, everything rewritten", False, rewritten("all-but-vocabulary", load_weights(zoo, f"{stem}-B")))
    noise = {name: torch.randn(w.shape, generator=random) * w.std() + w.mean() for name, w in ours.items()}
    yield Case("random numbers with A's deviations", False, noise)


def written(case: Case, folder: Path, shape: Shape) -> Path:
    """A model folder as people publish them, or a bare file in one."""
    folder.mkdir(parents=True)
    tensors = {name: w.contiguous() for name, w in case.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if not case.bare:
        layers = sum(name.endswith("input_layernorm.weight") for name in tensors)
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.width,
            "num_hidden_layers": layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.neurons, "vocab_size": shape.vocabulary, "rms_norm_eps": 1e-6,
            "max_position_embeddings": shape.positions, "tie_word_embeddings": shape.tied, "hidden_act": "silu",
            "torch_dtype": "float32",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        # Cisco's kit does not work without a tokenizer; this one has words without a meaning.
        words = {f"w{number}": number for number in range(shape.vocabulary)}
        tokenizer = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
        }  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def run(command: list[str], read: Callable[[str], tuple[str, str]]) -> Answer:
    """Run one comparison; time and memory are those of the process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    around = environment(HF_HUB_OFFLINE="1", NO_COLOR="1", COLUMNS="200")
    wrapper = [sys.executable, "-c", _MEASURE, *command]
    done = subprocess.run(wrapper, capture_output=True, text=True, timeout=TIMEOUT, env=around, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    *text, last = done.stdout.split("\x1e")
    try:
        outcome, words = read("".join(text))
    except (ValueError, KeyError, IndexError, TypeError):
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        outcome, words = "error", _PATH.sub("...", last_line)[:60]
    return Answer(outcome, words, seconds, float(last or 0) / 1024)


_PATH = re.compile(r"'?/\S+'?")
_MEASURE = (
    "import resource,subprocess,sys;"
    "out=subprocess.run(sys.argv[1:],stdout=subprocess.PIPE,text=True).stdout;"
    "sys.stdout.write(out+chr(30)+str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
)


def read_fp(text: str) -> tuple[str, str]:
    (report,) = json.loads(text)
    match = report["matches"][0] if report["matches"] else None
    words = report["verdict"] if match is None else f"{match['relation']}, {match['confidence']}"
    if report["verdict"] == "match":
        return "found", words
    return ("abstained" if report["verdict"] in {"possible", "inconclusive"} else "missed"), words


def read_modeldna(text: str) -> tuple[str, str]:
    verdict = json.loads(text)["verdict"]["verdict"]
    if verdict in {"INSUFFICIENT", "SAME_FAMILY_UNRESOLVED"}:
        return "abstained", verdict
    return ("missed" if verdict == "NO_MATCH" else "found"), verdict


def read_cisco(text: str) -> tuple[str, str]:
    scores: dict[str, Any] = json.loads(text[text.index("{") :])["scores"]
    decision = str(scores["provenance_decision"])
    related = decision.lower().startswith(("confirmed", "high"))
    return ("found" if related else "missed"), f"{decision} {scores['pipeline_score']:.2f}"


def commands(tools: dict[str, str], registered: Path, suspect: Path) -> Iterator[tuple[str, list[str], Any]]:
    python = [sys.executable, "-m", "cli", "compare", str(registered), str(suspect), "--format", "json", "-q"]
    yield "weightprint", python, read_fp
    if "modeldna" in tools:
        yield (
            "modeldna",
            [tools["modeldna"], "compare", str(suspect), str(registered), "--full", "--json"],
            read_modeldna,
        )
    if "cisco" in tools:
        yield "cisco", [tools["cisco"], "compare", str(registered), str(suspect), "--json", "--no-cache"], read_cisco


def signature_sizes(tools: dict[str, str], registered: Path, folder: Path) -> dict[str, str]:
    """Bytes of what each tool keeps of model A."""
    found = {}
    target = folder / "a.fpsig"
    subprocess.run([sys.executable, "-m", "cli", "sketch", str(registered), "-o", str(target), "-q"], check=True)
    found["weightprint"] = f"{target.stat().st_size:,}"
    if "modeldna" in tools:
        target = folder / "a.json"
        command = [tools["modeldna"], "fingerprint", str(registered), "-o", str(target), "--full"]
        subprocess.run(command, check=False, capture_output=True)
        if target.exists():
            found["modeldna"] = f"{target.stat().st_size:,}"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=ROOT / ".cache" / "zoo")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=PATH", help="modeldna, cisco")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tools = dict(one.split("=", 1) for one in options.tool)
    tools = {name: path for name, path in tools.items() if shutil.which(path)}
    stem = "quick-a-llama-48" if options.quick else STEM
    specs = family("a", quick=options.quick)
    wanted = [f"{stem}-{model}" for model in ("A", "B", "A-ftx", "A-cont", "B-ftx")]
    build(options.zoo, specs, wanted, lambda line: print(line, file=sys.stderr))
    shape = next(spec.shape for spec in specs if spec.id == wanted[0])
    answers: dict[str, list[tuple[Case, Answer]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registered = written(Case("A", True, load_weights(options.zoo, wanted[0])), folder / "A", shape)
        for number, case in enumerate(cases(options.zoo, stem, shape)):
            suspect = written(case, folder / f"suspect-{number}", shape)
            for tool, command, read in commands(tools, registered, suspect):
                answer = run(command, read)
                answers.setdefault(tool, []).append((case, answer))
                print(f"{case.name}\t{tool}\t{answer.outcome}\t{answer.words}", file=sys.stderr, flush=True)
        sizes = signature_sizes(tools, registered, folder)
    options.out.write_text(page(answers, sizes))
    print(options.out, time.strftime("%Y-%m-%d"))
    return 0


def page(answers: dict[str, list[tuple[Case, Answer]]], sizes: dict[str, str]) -> str:
    lines = [HEAD, "| | " + " | ".join(answers) + " |", "|---|" + "---|" * len(answers)]
    related = {tool: [one for one in found if one[0].related] for tool, found in answers.items()}
    strangers = {tool: [one for one in found if not one[0].related] for tool, found in answers.items()}

    def count(found: dict[str, list[tuple[Case, Answer]]], outcome: str) -> str:
        return " | ".join(
            f"{Counter(answer.outcome for _, answer in one)[outcome]} of {len(one)}" for one in found.values()
        )

    lines += [f"| relatives {outcome} | {count(related, outcome)} |" for outcome in
              ("found", "missed", "abstained", "error")]  # fmt: skip
    lines += [f"| **false**: strangers found | {count(strangers, 'found')} |"]
    for label, pick in (("CPU seconds a comparison, median", "seconds"), ("peak memory, MB, median", "megabytes")):
        values = []
        for found in answers.values():
            numbers = sorted(getattr(answer, pick) for _, answer in found)
            values.append(f"{numbers[len(numbers) // 2]:.1f}")
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    lines.append("| bytes kept of model A | " + " | ".join(sizes.get(tool, "-") for tool in answers) + " |")
    lines += ["", "| suspect | descends from A | " + " | ".join(answers) + " |", "|---|---|" + "---|" * len(answers)]
    for number, (case, _) in enumerate(next(iter(answers.values()))):
        said = [_said(case, found[number][1]) for found in answers.values()]
        lines.append(f"| {case.name} | {'yes' if case.related else 'no'} | " + " | ".join(said) + " |")
    lines.append(
        "\nmodeldna is version 0.1.0, cisco is cisco-ai-provenance-kit 1.0.0 (under Python 3.12, which it asks for), "
        "where they have a column. Cisco's kit does not work without a tokenizer: beside each model with a "
        "configuration lies one whose words have no meaning. It keeps nothing of a model that users can exchange. "
        "Times include the start of the program. x86_64, 2 cores."
    )
    return "\n".join(lines) + "\n"


def _said(case: Case, answer: Answer) -> str:
    outcome = "cleared" if answer.outcome == "missed" and not case.related else answer.outcome
    return f"{outcome}: {answer.words}"


if __name__ == "__main__":
    sys.exit(main())
