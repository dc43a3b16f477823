"""Synthetic fingerprints of chosen shapes, without weights: for measuring and testing files, registry and index."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np

from fingerprint.parameters import DEFAULT_PARAMETERS, Parameters
from fingerprint.records import AxisSample, Fingerprint, NeuronSample, TensorRecord, TensorStatistics
from fingerprint.vocabulary import Axis, Content, Role

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

    def neurons(self, layer: int | None, expert: int | None, size: int, tensors: tuple[int, int, int]) -> NeuronSample:
        count, width = min(self.parameters.neuron_samples, size), self.parameters.frame_width
        chosen = np.sort(self.random.choice(size, count, replace=False)).astype(np.int64)
        parts = [self.normal(count, width) for _ in range(3)]
        up = parts[1] if tensors[1] >= 0 else None
        return NeuronSample(layer, expert, "fixed", "silu", size, tensors, chosen, parts[0], up, parts[2])

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


HIDDEN = ((Axis.NEURON, 0), (Axis.RESIDUAL, 1))
BACK = ((Axis.RESIDUAL, 0), (Axis.NEURON, 1))


def small_model(seed: int, *, layers: int = 2, width: int = 64, hidden: int = 96) -> Fingerprint:
    """A Llama-like model of a few layers."""
    make = Maker(seed)
    tensors = [make.matrix("embed", Role.TOKEN_EMBEDDING, None, (512, width), ((Axis.TOKEN, 0), (Axis.RESIDUAL, 1)))]
    neurons: list[NeuronSample] = []
    for layer in range(layers):
        add_gated(make, tensors, neurons, (layer, None), (width, hidden))
        tensors.append(make.vector(f"layers.{layer}.norm", width, layer))
    return make.fingerprint(tensors, neurons)


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
    return make.fingerprint(tensors, neurons)


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
    return make.fingerprint(tensors, neurons)
