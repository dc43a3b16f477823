"""Synthetic fingerprints of chosen shapes, without weights: for measuring and testing files, registry and index."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from msgspec.structs import replace

from fingerprint.parameters import DEFAULT_PARAMETERS, Parameters
from fingerprint.records import (
    AxisSample,
    ChannelSample,
    Fingerprint,
    LayerGram,
    NeuronSample,
    TensorRecord,
    TensorStatistics,
)
from fingerprint.vocabulary import Axis, ChannelKind, Circuit, Content, Frame, Role

POOL = 1 << 22


class Maker:
    """Makes records of random content; the same seed makes the same ones."""

    def __init__(self, seed: int, parameters: Parameters = DEFAULT_PARAMETERS, *, pool: int = 0) -> None:
        """With a ``pool``, arrays are windows of that many random numbers: gigabytes of samples cost megabytes."""
        self.random = np.random.default_rng(seed)
        self._pool = self.random.standard_normal(pool, dtype=np.float32)
        self.parameters = parameters
        self._indices: dict[int, np.ndarray] = {}

    def indices(self, size: int, count: int) -> np.ndarray:
        """``count`` ascending indices below ``size``: a function of ``size``, as the method wants it."""
        if size not in self._indices:
            chosen = np.random.default_rng(size).choice(size, min(count, size), replace=False)
            self._indices[size] = np.sort(chosen).astype(np.int64)
        return self._indices[size]

    def normal(self, *shape: int) -> np.ndarray:
        if not len(self._pool):
            return self.random.standard_normal(shape, dtype=np.float32)
        size = math.prod(shape)
        start = int(self.random.integers(0, len(self._pool) - size))
        return self._pool[start : start + size].reshape(shape)

    def axis(self, axis: Axis, dimension: int, size: int) -> AxisSample:
        indices = self.indices(size, self.parameters.axis_samples)
        return AxisSample(axis, dimension, size, indices, self.normal(len(indices), self.parameters.axis_width))

    def vector(self, name: str, size: int, layer: int | None, role: Role = Role.NORM_GAIN) -> TensorRecord:
        return replace(
            self.matrix(name, role, layer, (size, 1), ()),
            shape=(size,),
            content=Content.VECTOR,
            sketch=None,
        )

    def matrix(
        self,
        name: str,
        role: Role,
        layer: int | None,
        shape: tuple[int, ...],
        axes: tuple[tuple[Axis, int], ...],
        *,
        expert: int | None = None,
    ) -> TensorRecord:
        width = self.parameters.sketch_width
        return TensorRecord(
            name=name,
            role=role,
            layer=layer,
            expert=expert,
            shape=shape,
            oriented=True,
            dtype="F32",
            content=Content.WEIGHTS,
            digest=self.random.bytes(32),
            casts={word: self.random.bytes(32) for word in ("BF16", "F16", "F8_E4M3", "F8_E5M2")},
            statistics=TensorStatistics(
                float(self.random.normal(0, 1e-4)),
                float(self.random.gamma(2, 0.01)),
                float(self.random.gamma(2, 0.1)),
                float(self.random.gamma(2, 2)),
                0.0,
                0,
                0,
            ),
            sketch=self.normal(width, width),
            axes=tuple(self.axis(axis, dimension, shape[dimension]) for axis, dimension in axes),
        )

    def neurons(
        self,
        layer: int | None,
        expert: int | None,
        size: int,
        tensors: tuple[int, int, int],
        frame: Frame = Frame.FIXED,
    ) -> NeuronSample:
        wanted = self.parameters.neuron_samples if frame is Frame.FIXED else self.parameters.gauge_samples
        count, width = min(wanted, size), self.parameters.frame_width
        chosen = np.sort(self.random.choice(size, count, replace=False)).astype(np.int64)
        parts = [self.normal(count, width) for _ in range(3)]
        up = parts[1] if tensors[1] >= 0 else None
        return NeuronSample(layer, expert, frame.value, "silu", size, tensors, chosen, parts[0], up, parts[2])

    def own(self, sample: NeuronSample, count: int = 256, width: int = 48, described: int = 68) -> NeuronSample:
        """Neurons of the same MLP in a frame of its own."""
        count = min(count, sample.size)
        parts = [self.normal(count, width) for _ in range(3)]
        chosen = np.arange(count, dtype=np.int64)
        own = replace(sample, frame=Frame.SELF.value, indices=chosen, gate=parts[0], up=parts[1], down=parts[2])
        return replace(own, descriptors=self.normal(count, described))

    def channels(
        self, layer: int, kind: ChannelKind, tensors: tuple[int, int], size: int, head: int, count: int
    ) -> ChannelSample:
        chosen = np.arange(min(count, size), dtype=np.int64)
        parts = self.normal(kind.parts, len(chosen), self.parameters.frame_width)
        return ChannelSample(layer, Frame.ANCHORS.value, kind, size, head, tensors, chosen, parts)

    def gram(self, layer: int, circuit: Circuit, tensors: tuple[int, int]) -> LayerGram:
        values = self.normal(self.parameters.index_width**2)
        return LayerGram(layer, Frame.ANCHORS.value, circuit, tensors, values / np.float32(np.linalg.norm(values)))

    def fingerprint(self, tensors: list[TensorRecord], neurons: list[NeuronSample]) -> Fingerprint:
        stored = sum(4 * record.elements for record in tensors)
        return Fingerprint(
            parameters=self.parameters,
            depth="full",
            format="safetensors",
            files=1,
            stored_bytes=stored,
            bytes_read=stored,
            dtypes={"F32": len(tensors)},
            complete=True,
            tensors=tuple(tensors),
            neurons=tuple(neurons),
            findings=(("unknown-metadata", "a note of the reader"),),
            claims={"architecture": "Synthetic", "name": hashlib.sha256(str(stored).encode()).hexdigest()[:8]},
        )

    def in_moving_frames(self, made: Fingerprint, *, own: int, channels: int, head: int) -> Fingerprint:
        """The same with samples in frames that move with the residual stream.

        ``own`` MLPs, spread over the depth, are sampled in their own frames too, and ``channels`` channels (half as
        many rotary pairs) of every second layer's attention, of heads of ``head`` channels.
        """
        fixed = made.neurons
        neurons = [self.neurons(one.layer, one.expert, one.size, one.tensors, Frame.ANCHORS) for one in fixed]
        dense = [one for one in fixed if one.expert is None]
        neurons += [self.own(one) for one in dense[:: max(1, -(-len(dense) // max(own, 1)))]]
        roles: dict[int, dict[Role, int]] = {}
        for position, record in enumerate(made.tensors):
            if record.layer is not None and record.expert is None:
                roles.setdefault(record.layer, {})[record.role] = position
        samples = []
        grams = [
            self.gram(one.layer, Circuit.DOWN_UP, (one.tensors[2], one.tensors[1]))
            for one in dense
            if one.layer is not None
        ]
        for layer, found in roles.items():
            if Role.VALUE not in found:
                continue
            values, queries = (found[Role.VALUE], found[Role.ATTENTION_OUTPUT]), (found[Role.KEY], found[Role.QUERY])
            grams.append(self.gram(layer, Circuit.OUTPUT_VALUE, values[::-1]))
            grams.append(self.gram(layer, Circuit.QUERY_KEY, queries[::-1]))
            if layer % 2 == 0:
                size = made.tensors[values[0]].shape[0]
                samples.append(self.channels(layer, ChannelKind.VALUE_OUTPUT, values, size, head, channels))
                samples.append(self.channels(layer, ChannelKind.ROTARY, queries, size // 2, head // 2, channels // 2))
        return replace(made, neurons=(*fixed, *neurons), channels=tuple(samples), grams=tuple(grams))


HIDDEN = ((Axis.NEURON, 0), (Axis.RESIDUAL, 1))
BACK = ((Axis.RESIDUAL, 0), (Axis.NEURON, 1))


def small_model(seed: int, *, layers: int = 2, width: int = 64, hidden: int = 96) -> Fingerprint:
    """A Llama-like model of a few layers."""
    make = Maker(seed)
    tensors = [make.matrix("embed", Role.TOKEN_EMBEDDING, None, (512, width), ((Axis.TOKEN, 0), (Axis.RESIDUAL, 1)))]
    neurons: list[NeuronSample] = []
    for layer in range(layers):
        for word, role in (("q", Role.QUERY), ("k", Role.KEY), ("v", Role.VALUE), ("o", Role.ATTENTION_OUTPUT)):
            tensors.append(make.matrix(f"layers.{layer}.{word}", role, layer, (width, width), ()))
        add_gated(make, tensors, neurons, (layer, None), (width, hidden))
        tensors.append(make.vector(f"layers.{layer}.norm", width, layer))
    return make.in_moving_frames(make.fingerprint(tensors, neurons), own=2, channels=8, head=16)


def add_gated(
    make: Maker,
    tensors: list[TensorRecord],
    neurons: list[NeuronSample],
    place: tuple[int, int | None],
    sizes: tuple[int, int],
) -> None:
    """Add one gated MLP and its sampled neurons; ``place`` is layer and expert, ``sizes`` width and neurons."""
    (layer, expert), (width, hidden) = place, sizes
    first = len(tensors)
    middle = "" if expert is None else f".experts.{expert}"
    for word, role, shape, axes in (
        ("gate_proj", Role.GATE, (hidden, width), HIDDEN),
        ("up_proj", Role.UP, (hidden, width), HIDDEN),
        ("down_proj", Role.DOWN, (width, hidden), BACK),
    ):
        name = f"model.layers.{layer}.mlp{middle}.{word}.weight"
        tensors.append(make.matrix(name, role, layer, shape, axes, expert=expert))
    neurons.append(make.neurons(layer, expert, hidden, (first, first + 1, first + 2)))


def llama_8b(seed: int = 8) -> Fingerprint:
    """The shapes of a dense model of 8 billion parameters (Llama 3)."""
    make = Maker(seed, pool=POOL)
    width, hidden, cache = 4096, 14336, 1024
    token = ((Axis.TOKEN, 0), (Axis.RESIDUAL, 1))
    tensors = [make.matrix("model.embed_tokens.weight", Role.TOKEN_EMBEDDING, None, (128256, width), token)]
    neurons: list[NeuronSample] = []
    for layer in range(32):
        for word, role, rows in (("q", Role.QUERY, width), ("k", Role.KEY, cache), ("v", Role.VALUE, cache)):
            name = f"model.layers.{layer}.self_attn.{word}_proj.weight"
            tensors.append(make.matrix(name, role, layer, (rows, width), ((Axis.CHANNEL, 0), (Axis.RESIDUAL, 1))))
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        axes = ((Axis.RESIDUAL, 0), (Axis.CHANNEL, 1))
        tensors.append(make.matrix(name, Role.ATTENTION_OUTPUT, layer, (width, width), axes))
        add_gated(make, tensors, neurons, (layer, None), (width, hidden))
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors += [make.vector(f"model.layers.{layer}.{word}.weight", width, layer) for word in norms]
    tensors.append(make.vector("model.norm.weight", width, None))
    tensors.append(make.matrix("lm_head.weight", Role.OUTPUT_HEAD, None, (128256, width), token))
    return make.in_moving_frames(make.fingerprint(tensors, neurons), own=6, channels=64, head=128)


def deepseek_671b(seed: int = 671) -> Fingerprint:
    """The shapes of a mixture of experts of 671 billion parameters (DeepSeek V3): 61 layers, 58 of 256 experts."""
    make = Maker(seed, pool=POOL)
    width, hidden, dense = 7168, 2048, 18432
    token = ((Axis.TOKEN, 0), (Axis.RESIDUAL, 1))
    inward = ((Axis.CHANNEL, 0), (Axis.RESIDUAL, 1))
    tensors = [make.matrix("model.embed_tokens.weight", Role.TOKEN_EMBEDDING, None, (129280, width), token)]
    neurons: list[NeuronSample] = []
    for layer in range(61):
        for word, role, shape, axes in (
            ("q_a_proj", Role.LATENT_DOWN, (1536, width), inward),
            ("q_b_proj", Role.LATENT_UP, (24576, 1536), ((Axis.CHANNEL, 0), (Axis.CHANNEL, 1))),
            ("kv_a_proj_with_mqa", Role.LATENT_DOWN, (576, width), inward),
            ("kv_b_proj", Role.LATENT_UP, (32768, 512), ((Axis.CHANNEL, 0), (Axis.CHANNEL, 1))),
            ("o_proj", Role.ATTENTION_OUTPUT, (width, 16384), ((Axis.RESIDUAL, 0), (Axis.CHANNEL, 1))),
        ):
            tensors.append(make.matrix(f"model.layers.{layer}.self_attn.{word}.weight", role, layer, shape, axes))
        for word, size in (("q_a_layernorm", 1536), ("kv_a_layernorm", 512)):
            tensors.append(make.vector(f"model.layers.{layer}.self_attn.{word}.weight", size, layer))
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors += [make.vector(f"model.layers.{layer}.{word}.weight", width, layer) for word in norms]
        if layer < 3:
            add_gated(make, tensors, neurons, (layer, None), (width, dense))
            continue
        name = f"model.layers.{layer}.mlp.gate.weight"
        tensors.append(make.matrix(name, Role.ROUTER, layer, (256, width), ((Axis.UNKNOWN, 0), (Axis.RESIDUAL, 1))))
        tensors.append(make.vector(f"model.layers.{layer}.mlp.gate.e_score_correction_bias", 256, layer, Role.BIAS))
        add_gated(make, tensors, neurons, (layer, None), (width, hidden))
        for expert in range(256):
            add_gated(make, tensors, neurons, (layer, expert), (width, hidden))
    tensors.append(make.vector("model.norm.weight", width, None))
    tensors.append(make.matrix("lm_head.weight", Role.OUTPUT_HEAD, None, (129280, width), token))
    return make.in_moving_frames(make.fingerprint(tensors, neurons), own=6, channels=64, head=128)
