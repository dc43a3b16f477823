"""The table of cases, in a fixed order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.lineage import derive_builders as make
from benchmarks.lineage import derive_ops as ops
from benchmarks.lineage.derive_cases import Build, Case, Kit, Link, Made, Names, Verdict
from benchmarks.zoo.models import Style

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.zoo.models import Weights

_AB = ("A", "B")
_TUNES = ("A", "A-ftx", "A-fty", "B")
_MERGE_BASES = (("A-ftx", "A-fty"), ("A", "A-ftx", "A-fty"))
_OF_A = partial(Case, verdict=Verdict.MATCH, parents=("A",), registered=_AB)
_NEVER = partial(Case, verdict=Verdict.NO_MATCH, relations=(), parents=())
_MERGED = partial(
    Case,
    verdict=Verdict.MATCH,
    relations=("merged",),
    parents=("A-ftx", "A-fty"),
    registered=_TUNES,
    links={"A": Link.ANCESTOR},
    bases=_MERGE_BASES,
)


def _value_cases() -> list[Case]:
    return [
        _OF_A(
            name="copy",
            relations=("identical",),
            build=make.one("A"),
            done="copied, byte for byte the same values and names",
            names=Names.KEPT,
            sorted_names=True,
        ),
        *(
            _OF_A(
                name=f"cast-{label}",
                relations=("dtype-cast",),
                build=make.one("A"),
                done=f"cast to {label}",
                dtype=dtype,
            )
            for label, dtype in {
                "bf16": torch.bfloat16,
                "fp16": torch.float16,
                "fp8-e4m3": torch.float8_e4m3fn,
                "fp8-e5m2": torch.float8_e5m2,
            }.items()
        ),
        *(
            _OF_A(
                name=f"quantised-{bits}bit-{'symmetric' if symmetric else 'asymmetric'}-{group}",
                relations=("quantised",),
                build=make.quantised("A", bits, group, symmetric=symmetric),
                done=f"layer matrices rounded to {bits} bits in groups of {group}, dequantised",
            )
            for bits, group, symmetric in (
                (8, 32, False),
                (8, 128, True),
                (4, 32, False),
                (4, 64, True),
                (4, 128, False),
                (4, 128, True),
                (3, 32, True),
                (3, 64, False),
            )
        ),
        _OF_A(
            name="quantised-nf4-64",
            relations=("quantised",),
            build=make.one("A", lambda w, k, _: ops.quantise_nf4(w, k.shape.style, 64)),
            done="layer matrices rounded to a codebook of 16 normal quantiles in groups of 64",
        ),
        _OF_A(
            name="fine-tuned",
            relations=("fine-tuned",),
            build=make.one("A-ftx"),
            done="fine-tuned on X",
            uses=("A-ftx",),
        ),
        Case(
            "fine-tuned-twice",
            Verdict.MATCH,
            ("fine-tuned",),
            ("A-ftx",),
            ("A", "A-ftx", "B"),
            make.one("A-ftx-ft2"),
            "fine-tuned on X, then on Y; the first fine-tune is registered",
            uses=("A-ftx-ft2",),
            links={"A": Link.ANCESTOR},
        ),
        _OF_A(
            name="continued",
            relations=("continued-training",),
            build=make.one("A-cont"),
            uses=("A-cont",),
            done="trained on for as long as before, on other data",
        ),
        _OF_A(
            name="continued-4bit",
            relations=("continued-training", "quantised"),
            build=make.quantised("A-cont", 4, 64, symmetric=False),
            uses=("A-cont",),
            done="trained on as long as before, then rounded to 4 bits in groups of 64",
        ),
        *(
            _OF_A(
                name=f"pruned-{share:.0%}".removesuffix("%"),
                relations=("pruned",),
                build=make.pruned(share),
                done=f"smallest {share:.0%} of each matrix set to zero",
            )
            for share in (0.5, 0.8)
        ),
        _OF_A(
            name="rescaled",
            relations=("rewritten",),
            build=make.one("A", lambda w, *_: ops.times(w, 0.7)),
            done="every matrix multiplied by 0.7",
        ),
        _OF_A(
            name="negated",
            relations=("rewritten",),
            build=make.one("A", lambda w, *_: ops.times(w, -1.0)),
            done="every matrix multiplied by -1",
        ),
        *(
            _OF_A(
                name=f"noise-{share:.0%}".removesuffix("%"),
                relations=("noised",),
                build=make.noised(share),
                done=f"Gaussian noise of {share:.0%} of each tensor's deviation added",
            )
            for share in (0.01, 0.2, 1.0)
        ),
    ]


def _merge_cases() -> list[Case]:
    def both(merge: Callable[[Weights, Weights, Kit], Weights]) -> Build:
        return lambda kit, _: Made(merge(kit.model("A-ftx"), kit.model("A-fty"), kit))

    frankenmerge = partial(Case, verdict=Verdict.MATCH, relations=("merged",), names=Names.STRUCTURED)
    return [
        _MERGED(
            name="merge-linear",
            build=both(lambda x, y, _: ops.linear((x, y), (0.5, 0.5))),
            done="half of each of two fine-tunes",
        ),
        _MERGED(
            name="merge-slerp",
            build=both(lambda x, y, _: ops.slerp(x, y, 0.3)),
            done="slerp of two fine-tunes, t = 0.3",
        ),
        _MERGED(
            name="merge-ties",
            build=both(lambda x, y, k: ops.ties(k.model("A"), (x, y), 0.5)),
            done="TIES of two fine-tunes, density 0.5",
        ),
        Case(
            "merge-foreign",
            Verdict.MATCH,
            ("merged",),
            _AB,
            _AB,
            lambda k, _: Made(ops.linear((k.model("A"), k.model("B")), (0.7, 0.3))),
            "0.7 A + 0.3 B",
            bases=(_AB,),
        ),
        frankenmerge(
            name="frankenmerge",
            parents=_AB,
            registered=_AB,
            build=make.layers("A", [("A", 0), ("B", 1), ("A", 2), ("B", 3)]),
            done="layers of A and B in turns, the rest of A",
        ),
        frankenmerge(
            name="frankenmerge-fine-tune",
            parents=("A-ftx", "B"),
            registered=("A", "A-ftx", "B"),
            links={"A": Link.ANCESTOR},
            build=make.layers("A-ftx", [("A-ftx", 0), ("A-ftx", 1), ("B", 2), ("B", 3)]),
            done="first half of the layers and the rest of a fine-tune of A, second half of the layers of B",
        ),
        frankenmerge(
            name="frankenmerge-stacked",
            parents=_AB,
            registered=_AB,
            build=make.layers("B", [("A", 0), ("A", 1), ("A", 2), ("B", 1), ("B", 2), ("B", 3)]),
            done="six layers: 0 to 2 of A, then 1 to 3 of B; the rest of B",
        ),
    ]


def _layer_cases() -> list[Case]:
    def order(name: str, relations: tuple[str, ...], layers: Sequence[int], done: str) -> Case:
        build = make.layers("A", [("A", i) for i in layers])
        return _OF_A(name=name, relations=relations, build=build, done=done, names=Names.STRUCTURED)

    return [
        order("layers-dropped", ("pruned",), (0, 2, 3), "layer 1 of 4 left out"),
        order("layers-dropped-half", ("pruned",), (0, 3), "layers 1 and 2 of 4 left out"),
        order("layers-repeated", ("depth-upscaled",), (0, 1, 2, 1, 2, 3), "layers 0 1 2 1 2 3"),
        order("layers-doubled", ("depth-upscaled",), (0, 0, 1, 1, 2, 2, 3, 3), "every layer twice"),
        order("layers-swapped", ("reformatted", "unclear"), (0, 2, 1, 3), "layers 1 and 2 have changed places"),
        order("layers-reversed", ("reformatted", "unclear"), (3, 2, 1, 0), "layers in reverse order"),
        _OF_A(
            name="neurons-pruned-by-norm",
            relations=("pruned",),
            build=make.one("A", make.largest_neurons),
            done="the half of each layer's MLP neurons with the smallest norms left out",
        ),
        _OF_A(
            name="neurons-pruned-at-random",
            relations=("pruned",),
            build=make.one("A", make.random_neurons),
            done="a random half of each layer's MLP neurons left out",
        ),
        _OF_A(
            name="neurons-permuted",
            relations=("rewritten",),
            build=make.one("A", make.permuted),
            done="MLP neurons permuted in each layer; logits checked to be equal",
        ),
        Case(
            "neurons-permuted-fine-tuned",
            Verdict.MATCH,
            ("rewritten", "fine-tuned"),
            ("A",),
            _AB,
            make.one("A-ftx", make.permuted),
            "fine-tuned on X, then MLP neurons permuted; logits checked to be equal",
            uses=("A-ftx",),
        ),
        _OF_A(
            name="experts-noisy",
            relations=("upcycled",),
            build=make.upcycled(0.05),
            done="each MLP copied to 4 experts with 5% noise, random router",
        ),
        _OF_A(
            name="experts-copied",
            relations=("upcycled",),
            build=make.upcycled(0.0),
            done="each MLP copied to 4 experts, random router",
            names=Names.KEPT,
        ),
        _OF_A(
            name="experts-stacked",
            relations=("upcycled",),
            build=make.upcycled(0.05, stacked=True),
            done="each MLP copied to 4 experts with 5% noise in 3-D tensors, random router",
        ),
        _OF_A(
            name="vocabulary-extended",
            relations=("extended",),
            build=make.one("A", lambda w, k, r: ops.extend_vocabulary(w, 64, k.shape.vocabulary, r)),
            done="64 rows added to the embeddings and the head",
        ),
    ]


def _form_cases() -> list[Case]:
    form = partial(_OF_A, relations=("reformatted",))
    llama, gpt2 = make.has_style(Style.LLAMA), make.has_style(Style.GPT2)
    part = partial(_OF_A, relations=("partial",))
    return [
        form(name="renamed", build=make.one("A"), done="renamed"),
        form(
            name="reordered",
            relations=("identical", "reformatted"),
            build=make.one("A"),
            done="same names, another order of the tensors in the file",
            names=Names.KEPT,
        ),
        form(
            name="resharded",
            relations=("identical", "reformatted"),
            build=make.one("A"),
            done="same names, three shards and an index",
            names=Names.KEPT,
            shards=3,
        ),
        form(name="resharded-renamed", build=make.one("A"), done="renamed, four shards and an index", shards=4),
        form(
            name="fused",
            build=make.one("A", lambda w, _k, _r: ops.fuse(w)),
            done="query, key and value in one tensor, gate and up in another, under names in use",
            names=Names.KEPT,
            applies=llama,
        ),
        form(
            name="fused-renamed",
            build=make.one("A", lambda w, _k, _r: ops.fuse(w)),
            done="query, key and value in one tensor, gate and up in another, renamed",
            applies=llama,
        ),
        form(
            name="split",
            build=make.one("A", lambda w, _k, _r: ops.split_qkv(w)),
            done="query, key and value apart",
            names=Names.KEPT,
            applies=gpt2,
        ),
        form(
            name="split-renamed",
            build=make.one("A", lambda w, _k, _r: ops.split_qkv(w)),
            done="query, key and value apart, renamed",
            applies=gpt2,
        ),
        form(
            name="stacked",
            build=make.stacked,
            done="each tensor of all layers in one with a leading axis",
        ),
        form(
            name="transposed",
            build=make.one("A", lambda w, _k, _r: ops.transpose(w)),
            done="layer matrices stored the other way round",
        ),
        part(name="one-layer", build=make.one("A", make.one_layer), done="one layer alone"),
        part(
            name="one-matrix",
            build=make.one("A", lambda w, k, _: {make.matrix_name(k): w[make.matrix_name(k)]}),
            done=f"one MLP matrix of {make.ONE_MATRIX} elements or more alone",
            applies=make.has_large_matrix,
        ),
        part(
            name="one-shard",
            build=make.one("A"),
            done="the second of three shards, alone and renamed",
            shards=3,
            only_shard=1,
        ),
    ]


def _named_cases() -> list[Case]:
    return [
        Case(
            "sibling",
            Verdict.SIBLING,
            ("fine-tuned",),
            ("A",),
            ("A", "A-ftx", "B"),
            make.one("A-fty"),
            "another fine-tune of the same base, which is registered too",
            uses=("A-fty",),
            links={"A-ftx": Link.SIBLING},
        ),
        Case(
            "same-initialisation",
            Verdict.SAME_INITIALISATION,
            (),
            (),
            _AB,
            make.one("A-sameinit"),
            "trained from the same initialisation on other data",
            uses=("A-sameinit",),
            links={"A": Link.SAME_INITIALISATION},
        ),
        Case(
            "copied-embeddings",
            Verdict.SHARED_COMPONENT,
            (),
            (),
            _AB,
            make.one("A-copied-embeddings"),
            "A's embeddings, frozen, and all else new",
            uses=("A-copied-embeddings",),
            links={"A": Link.SHARED_COMPONENT},
        ),
    ]


def _never_cases() -> list[Case]:
    against = ("A", "A-ftx")
    table_cases = [
        _NEVER(
            name=f"tables-{label}",
            registered=(),
            build=make.with_tables(kinds),
            uses=("A",),
            done=f"random weights with A's gains; {label} tables in it and in a registered copy of A",
            reference=make.reference(kinds),
        )
        for label, kinds in {
            "sinusoid": ("sinusoid",),
            "rotary": ("rotary",),
            "mask": ("mask",),
            "all": ("sinusoid", "rotary", "mask"),
        }.items()
    ]
    return [
        _NEVER(
            name="other-seed",
            registered=against,
            build=make.one("B"),
            uses=("B",),
            done="same recipe and data, another seed",
        ),
        _NEVER(
            name="other-seed-named",
            registered=against,
            build=make.one("B"),
            uses=("B",),
            done="same recipe and data, another seed, under A's own names and order",
            names=Names.KEPT,
            sorted_names=True,
        ),
        _NEVER(
            name="other-seed-fine-tuned",
            registered=against,
            build=make.one("B-ftx"),
            uses=("B-ftx",),
            done="another seed, fine-tuned on the data of a registered fine-tune",
        ),
        _NEVER(
            name="other-seed-4bit",
            registered=against,
            build=make.quantised("B", 4, 32, symmetric=False),
            uses=("B",),
            done="another seed, rounded to 4 bits",
        ),
        _NEVER(
            name="random-same-moments",
            registered=against,
            build=make.one("A", lambda w, _k, r: ops.random_like(w, r)),
            done="Gaussian with each tensor's mean and deviation",
        ),
        _NEVER(
            name="random-same-moments-named",
            registered=against,
            build=make.one("A", lambda w, _k, r: ops.random_like(w, r)),
            done="Gaussian with each tensor's mean and deviation, under A's names",
            names=Names.KEPT,
        ),
        _NEVER(
            name="shuffled",
            registered=against,
            build=make.one("A", lambda w, _k, r: ops.shuffle(w, r)),
            done="elements of every tensor shuffled",
        ),
        _NEVER(
            name="zeros",
            registered=against,
            build=make.one("A", lambda w, _k, _r: ops.each(w, torch.zeros_like)),
            done="all zeros",
        ),
        _NEVER(
            name="constants", registered=against, build=make.one("A", make.constants), done="one number in each tensor"
        ),
        _NEVER(
            name="other-style",
            registered=against,
            build=make.one("other-style"),
            uses=("other-style",),
            done="a model of the other style",
        ),
        _NEVER(
            name="other-width",
            registered=against,
            build=make.one("other-width"),
            uses=("other-width",),
            done="a model of another width",
        ),
        _NEVER(
            name="gains-only",
            registered=against,
            build=make.one("A", lambda w, _k, r: make.new_matrices(w, r)),
            done="random weights with A's norm gains",
        ),
        _NEVER(
            name="other-embeddings",
            registered=against,
            build=make.one("B", make.embeddings),
            uses=("B",),
            done="independently trained embeddings of one vocabulary, alone",
            names=Names.KEPT,
        ),
        *table_cases,
    ]


def all_cases() -> list[Case]:
    """List every case, in a fixed order."""
    return _value_cases() + _merge_cases() + _layer_cases() + _form_cases() + _named_cases() + _never_cases()
