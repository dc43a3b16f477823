"""Laying out checkpoints: canonical tensors from names and from shapes."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fingerprint import dtypes
from fingerprint.canonical import CanonicalTensor, Layout, lay_out, with_fixed_residual
from fingerprint.roles.layout import OFFSET_GLU
from fingerprint.roles.tables import load_tables
from fingerprint.tensors import Array, TensorView, Transposed
from fingerprint.vocabulary import Axis, Role
from tests import architectures
from tests.architectures import Shape, Shapes, views

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

ARCHITECTURES = dict(architectures.architectures())
HINTS = {
    "pythia-410m": {"num_attention_heads": "16"},
    "bloom-560m": {"n_head": "16"},
    "falcon-7b": {"num_attention_heads": "71"},
    "falcon-40b": {"num_attention_heads": "128", "num_kv_heads": "8"},
}


@dataclass(frozen=True)
class Values:
    """A view of an array."""

    name: str
    array: Array = field(repr=False)
    dtype: dtypes.DType = dtypes.F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, start: int, stop: int) -> Array:
        return self.array.reshape(-1)[start:stop]


def laid_out(name: str) -> Layout:
    return lay_out(views(ARCHITECTURES[name]), HINTS.get(name, {}))


def stored(tensor: CanonicalTensor) -> tuple[str, tuple[Axis, Axis]]:
    """The stored tensor that a canonical one is of, and its axes the way they are stored."""
    view: TensorView = tensor.view
    axes = tensor.axes
    while hasattr(view, "source"):
        axes = axes[::-1] if isinstance(view, Transposed) else axes
        view = view.source
    return view.name, axes


def read(view: TensorView) -> Array:
    return view.read(0, math.prod(view.shape)).reshape(view.shape)


# --- what names say -------------------------------------------------------------------------------------------------

EXPECTED: Mapping[str, tuple[str, int, Mapping[Role, tuple[int, tuple[int, ...]]]]] = {
    "llama-3-8b": ("llama", 4096, {
        Role.QUERY: (32, (4096, 4096)), Role.KEY: (32, (1024, 4096)), Role.GATE: (32, (14336, 4096)),
        Role.DOWN: (32, (4096, 14336)), Role.TOKEN_EMBEDDING: (1, (128256, 4096)),
        Role.OUTPUT_HEAD: (1, (128256, 4096)),
    }),
    "mistral-7b": ("llama", 4096, {Role.VALUE: (32, (1024, 4096)), Role.UP: (32, (14336, 4096))}),
    "qwen2.5-0.5b": ("llama", 896, {Role.KEY: (24, (128, 896)), Role.BIAS: (72, ())}),
    "qwen3-0.6b": ("llama", 1024, {Role.QUERY: (28, (2048, 1024)), Role.ATTENTION_OUTPUT: (28, (1024, 2048))}),
    "gemma-2-2b": ("llama", 2304, {Role.QUERY: (26, (2048, 2304)), Role.NORM_GAIN: (105, (2304,))}),
    "phi-3-mini": ("phi3", 3072, {
        Role.QUERY: (32, (3072, 3072)), Role.VALUE: (32, (3072, 3072)), Role.GATE: (32, (8192, 3072)),
        Role.UP: (32, (8192, 3072)), Role.DOWN: (32, (3072, 8192)),
    }),
    "phi-3-medium": ("phi3", 5120, {Role.QUERY: (40, (5120, 5120)), Role.KEY: (40, (1280, 5120))}),
    "phi-2": ("phi", 2560, {Role.FC_IN: (32, (10240, 2560)), Role.ATTENTION_OUTPUT: (32, (2560, 2560))}),
    "gpt2": ("gpt2", 768, {
        Role.QUERY: (12, (768, 768)), Role.FC_IN: (12, (3072, 768)), Role.FC_OUT: (12, (768, 3072)),
        Role.POSITION_EMBEDDING: (1, (1024, 768)), Role.BUFFER: (12, (1, 1, 1024, 1024)),
    }),
    "pythia-410m": ("gpt_neox", 1024, {Role.KEY: (24, (1024, 1024)), Role.FC_OUT: (24, (1024, 4096))}),
    "gpt-j": ("gptj", 4096, {Role.QUERY: (28, (4096, 4096)), Role.FC_IN: (28, (16384, 4096))}),
    "opt-125m": ("opt", 768, {Role.FC_IN: (12, (3072, 768)), Role.POSITION_EMBEDDING: (1, (2050, 768))}),
    "bloom-560m": ("bloom", 1024, {Role.VALUE: (24, (1024, 1024)), Role.FC_IN: (24, (4096, 1024))}),
    "falcon-7b": ("falcon", 4544, {Role.QUERY: (32, (4544, 4544)), Role.KEY: (32, (64, 4544))}),
    "falcon-40b": ("falcon", 8192, {Role.QUERY: (60, (8192, 8192)), Role.KEY: (60, (512, 8192))}),
    "bert-base": ("bert", 768, {
        Role.QUERY: (12, (768, 768)), Role.FC_IN: (12, (3072, 768)), Role.TOKEN_EMBEDDING: (1, (30522, 768)),
        Role.OUTPUT_HEAD: (1, (30522, 768)), Role.CLASSIFIER: (1, (2, 768)),
    }),
    "minilm-l6": ("bert", 384, {Role.FC_OUT: (6, (384, 1536))}),
    "distilbert": ("distilbert", 768, {Role.ATTENTION_OUTPUT: (6, (768, 768)), Role.FC_IN: (6, (3072, 768))}),
    "t5-small": ("t5", 512, {
        Role.QUERY: (18, (512, 512)), Role.FC_IN: (12, (2048, 512)), Role.FC_OUT: (12, (512, 2048)),
    }),
    "flan-t5-small": ("t5", 512, {
        Role.QUERY: (18, (384, 512)), Role.GATE: (12, (1024, 512)), Role.DOWN: (12, (512, 1024)),
    }),
    "vit-b16": ("vit", 768, {
        Role.CONVOLUTION: (1, (768, 3, 16, 16)), Role.POSITION_EMBEDDING: (1, (197, 768)),
        Role.FC_IN: (12, (3072, 768)),
    }),
    "timm-vit-b16": ("timm_vit", 768, {Role.KEY: (12, (768, 768)), Role.FC_OUT: (12, (768, 3072))}),
    "mixtral": ("mixtral", 4096, {
        Role.GATE: (256, (14336, 4096)), Role.DOWN: (256, (4096, 14336)), Role.ROUTER: (32, (8, 4096)),
    }),
    "deepseek-v2-lite": ("deepseek", 2048, {
        Role.LATENT_DOWN: (27, (512, 2048)), Role.KEY: (27, (64, 2048)), Role.LATENT_UP: (27, (4096, 512)),
    }),
    "gpt-oss-20b": ("gpt_oss", 2880, {
        Role.GATE: (768, (2880, 2880)), Role.UP: (768, (2880, 2880)), Role.DOWN: (768, (2880, 2880)),
        Role.QUERY: (24, (4096, 2880)),
    }),
    "gpt-oss-narrow": ("gpt_oss", 2880, {Role.GATE: (32, (1440, 2880)), Role.DOWN: (32, (2880, 1440))}),
    "qwen3-vl-moe": ("stacked_moe", 2048, {Role.GATE: (6144, (768, 2048)), Role.DOWN: (6144, (2048, 768))}),
    "qwen3-vl-moe-out-in": ("stacked_moe", 2048, {Role.UP: (6144, (768, 2048)), Role.DOWN: (6144, (2048, 768))}),
    "gguf-llama": ("gguf", 4096, {Role.GATE: (32, (14336, 4096)), Role.VALUE: (32, (1024, 4096))}),
    "gguf-mixtral": ("gguf", 4096, {Role.GATE: (256, (14336, 4096)), Role.DOWN: (256, (4096, 14336))}),
    "protein-mpnn": ("protein_mpnn", 128, {Role.FC_IN: (6, (512, 128)), Role.FC_OUT: (6, (128, 512))}),
    "modernbert": ("modernbert", 768, {Role.QUERY: (22, (768, 768)), Role.GATE: (22, (1152, 768))}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_families_are_laid_out_as_their_code_has_them(name: str) -> None:
    family, width, roles = EXPECTED[name]
    layout = laid_out(name)
    assert (layout.family, layout.width) == (family, width)
    for role, (count, shape) in roles.items():
        found = [one for one in layout.tensors if one.role is role]
        assert len(found) == count
        assert not shape or {one.view.shape for one in found} == {shape}
        assert all(one.oriented for one in found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_element_is_laid_out_once_and_nothing_contradicts_its_name(name: str) -> None:
    shapes = ARCHITECTURES[name]
    layout = laid_out(name)
    elements: Counter[str] = Counter()
    for one in layout.tensors:
        elements[stored(one)[0]] += math.prod(one.view.shape)
        assert one.name == one.view.name
    assert elements == {tensor: math.prod(shape) for tensor, shape in shapes.items()}
    assert not any("contradict" in note for note in layout.notes)
    assert len({one.name for one in layout.tensors}) == len(layout.tensors)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mlps_join_matrices_of_one_layer_and_size(name: str) -> None:
    layout = laid_out(name)
    assert layout.mlps
    for mlp in layout.mlps:
        gate, down = layout.tensors[mlp.gate], layout.tensors[mlp.down]
        assert (gate.layer, gate.expert) == (down.layer, down.expert) == (mlp.layer, mlp.expert)
        assert gate.view.shape == down.view.shape[::-1]
        assert gate.axes == (Axis.NEURON, gate.axes[1])
        assert down.axes[1] is Axis.NEURON
        assert (mlp.up is None) == (gate.role is Role.FC_IN)
        if mlp.up is not None:
            assert layout.tensors[mlp.up].view.shape == gate.view.shape
            assert layout.tensors[mlp.up].layer == mlp.layer
    assert len({mlp.gate for mlp in layout.mlps}) == len(layout.mlps)


def test_one_mlp_an_expert_and_one_for_the_shared_expert() -> None:
    experts = Counter(mlp.expert for mlp in laid_out("qwen1.5-moe").mlps)
    assert experts == {None: 24, **dict.fromkeys(range(60), 24)}


def test_activations_come_from_the_configuration_or_the_family() -> None:
    tensors = views(architectures.llama(2, 64, 64, 64, 128, 100))
    assert {mlp.activation for mlp in lay_out(tensors, {}).mlps} == {"silu"}
    assert {mlp.activation for mlp in lay_out(tensors, {"hidden_act": "gelu"}).mlps} == {"gelu"}


def test_the_offset_of_gpt_oss_is_marked_whatever_the_configuration_says() -> None:
    layout = lay_out(views(ARCHITECTURES["gpt-oss-narrow"]), {"hidden_act": "silu"})
    assert {mlp.activation for mlp in layout.mlps} == {OFFSET_GLU}


def test_towers_are_stacks_of_their_own_and_one_stack_has_no_label() -> None:
    assert {one.stack for one in laid_out("clip-b32").tensors} == {"", "text", "vision"}
    assert {one.stack for one in laid_out("t5-small").tensors} == {"", "encoder", "decoder"}
    assert {one.stack for one in laid_out("bert-base").tensors} == {""}


def test_widths_of_two_towers_are_kept_apart() -> None:
    layout = laid_out("clip-b32")
    projection = next(one for one in layout.tensors if one.name == "visual_projection.weight")
    assert projection.view.shape == (512, 768)
    assert not any("other way round" in note for note in layout.notes)


# --- labels never decide --------------------------------------------------------------------------------------------


def small_llama(**changes: tuple[int, ...]) -> list[Shape]:
    shapes = architectures.llama(3, 64, 64, 32, 176, 1000)
    return views(shapes | {name.replace("__", "."): shape for name, shape in changes.items()})


def test_matrices_stored_the_other_way_round_are_turned() -> None:
    shapes = architectures.llama(3, 64, 64, 32, 176, 1000)
    turned = {name: shape[::-1] if "_proj" in name else shape for name, shape in shapes.items()}
    layout = lay_out(views(turned), {})
    assert any("other way round" in note for note in layout.notes)
    assert {one.view.shape for one in layout.tensors if one.role is Role.GATE} == {(176, 64)}
    query = next(one for one in layout.tensors if one.role is Role.QUERY)
    assert isinstance(query.view, Transposed)
    assert query.oriented


def test_orientation_of_squares_is_unknown_where_the_others_disagree() -> None:
    shapes = architectures.llama(3, 64, 64, 32, 176, 1000)
    mixed = {name: shape[::-1] if "gate_proj" in name else shape for name, shape in shapes.items()}
    layout = lay_out(views(mixed), {})
    assert {one.oriented for one in layout.tensors if one.role is Role.QUERY} == {False}
    assert {one.view.shape for one in layout.tensors if one.role is Role.GATE} == {(176, 64)}


@pytest.mark.parametrize("shape", [(), (0,), (64,), (7,), (176,), (3, 5), (0, 64), (64, 64, 64), (2, 176, 64)])
def test_a_gate_of_the_wrong_shape_is_not_believed(shape: tuple[int, ...]) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    layout = lay_out([Shape(one.name, shape if one.name == name else one.shape) for one in small_llama()], {})
    parts = [one for one in layout.tensors if stored(one)[0] == name]
    assert parts
    assert not any(one.role is Role.GATE for one in parts)
    assert sorted(mlp.layer or 0 for mlp in layout.mlps) == [0, 2]


def test_an_mlp_whose_parts_differ_in_size_is_not_believed() -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    layout = lay_out([Shape(one.name, (100, 64) if one.name == name else one.shape) for one in small_llama()], {})
    assert any("different sizes" in note for note in layout.notes)
    assert sorted(mlp.layer or 0 for mlp in layout.mlps) == [0, 2]
    gate = next(one for one in layout.tensors if one.name == name)
    assert gate.axes[0] is not Axis.NEURON


def test_embeddings_named_as_gates_have_no_neurons() -> None:
    """Tokens mean the same in every model: a name must not make them exchangeable."""
    layout = lay_out(
        [
            Shape("model.layers.0.mlp.gate_proj.weight", (32000, 64)),
            Shape("model.layers.0.mlp.up_proj.weight", (176, 64)),
            Shape("model.layers.0.mlp.down_proj.weight", (64, 176)),
        ],
        {},
    )
    assert not layout.mlps
    assert all(not one.axes[0].exchangeable for one in layout.tensors if one.view.shape[0] == 32000)


def test_blocks_of_unknown_heads_are_left_whole_with_a_note() -> None:
    layout = lay_out(views(architectures.neox(2, 64, 100)), {})
    blocks = [one for one in layout.tensors if one.name.endswith("query_key_value.weight")]
    assert [one.axes for one in blocks] == [(Axis.CHANNEL, Axis.RESIDUAL)] * 2
    assert any("left whole" in note for note in layout.notes)


def test_claims_of_heads_that_do_not_divide_are_not_believed() -> None:
    layout = lay_out(views(architectures.neox(2, 64, 100)), {"num_attention_heads": "7"})
    assert any("left whole" in note for note in layout.notes)


@st.composite
def hostile(draw: st.DrawFn) -> list[Shape]:
    patterns = st.sampled_from(sorted(load_tables().said))
    numbers = st.sampled_from(["0", "1", "007", "999999", "9999999"])
    tensors = []
    for _ in range(draw(st.integers(0, 12))):
        words = [draw(numbers) if word == "#" else word for word in draw(patterns).split(".")]
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 16, 48, 64, 192]), max_size=5))
        tensors.append(Shape(".".join(words), tuple(shape)))
    return tensors


@given(hostile(), st.dictionaries(st.sampled_from(["n_head", "num_kv_heads", "hidden_act"]), st.text(max_size=5)))
@settings(max_examples=300, deadline=None)
def test_names_and_shapes_at_odds_are_laid_out_all_the_same(tensors: list[Shape], hints: dict[str, str]) -> None:
    layout = lay_out(tensors, hints)
    assert sum(math.prod(one.view.shape) for one in layout.tensors) == sum(math.prod(one.shape) for one in tensors)
    for mlp in layout.mlps:
        assert layout.tensors[mlp.gate].view.shape == layout.tensors[mlp.down].view.shape[::-1]


def test_stacks_without_end_are_left_as_stored() -> None:
    layout = lay_out(
        [Shape("model.layers.0.mlp.experts.down_proj", (10**9, 64, 32)), Shape("a", (10**9, 64, 64)), *small_llama()],
        {},
    )
    assert len(layout.tensors) < 100


# --- positions ------------------------------------------------------------------------------------------------------


def test_residual_axes_are_not_exchangeable_where_positions_may_be_sinusoidal() -> None:
    with_table = ARCHITECTURES["opt-125m"]
    without = {name: shape for name, shape in with_table.items() if "embed_positions" not in name}
    assert Axis.RESIDUAL in {axis for one in lay_out(views(with_table), {}).tensors for axis in one.axes}
    layout = lay_out(views(without), {})
    assert Axis.RESIDUAL not in {axis for one in layout.tensors for axis in one.axes}
    assert Axis.NEURON in {axis for one in layout.tensors for axis in one.axes}
    assert any("sinusoidal" in note for note in layout.notes)


def test_a_layout_can_be_told_that_positions_are_sinusoidal() -> None:
    layout = laid_out("whisper-tiny")
    fixed = with_fixed_residual(layout)
    for before, after in zip(layout.tensors, fixed.tensors, strict=True):
        assert after.axes == tuple(Axis.CHANNEL if axis is Axis.RESIDUAL else axis for axis in before.axes)
    assert fixed.mlps == layout.mlps


# --- what shapes say ------------------------------------------------------------------------------------------------


def nameless(tensors: Sequence[Shape]) -> tuple[list[Shape], dict[str, str]]:
    names = {f"tensor {number}": one.name for number, one in enumerate(tensors)}
    return [Shape(name, one.shape, one.dtype) for name, one in zip(names, tensors, strict=True)], names


def exchangeable_by_name(layout: Layout) -> dict[str, tuple[bool, bool]]:
    """For each stored tensor, whether its rows and its columns are exchangeable in every part."""
    found: dict[str, tuple[bool, bool]] = {}
    for one in layout.tensors:
        name, (rows, columns) = stored(one)
        before = found.get(name, (True, True))
        found[name] = (before[0] and rows.exchangeable, before[1] and columns.exchangeable)
    return found


def assert_safe(known: Mapping[str, tuple[bool, bool]], tensors: Sequence[Shape], *, turned: bool = False) -> int:
    """No axis is exchangeable without names that is not with them; returns how many are."""
    blank, names = nameless(tensors)
    total = 0
    for one in lay_out(blank, {}).tensors:
        if len(one.view.shape) < 2:
            continue
        name, axes = stored(one)
        # Biases of stacked experts are vectors with names, and matrices without.
        if names[name].endswith("_bias"):
            continue
        allowed = known[names[name]]
        for axis, fine in zip(axes, allowed[::-1] if turned else allowed, strict=True):
            assert fine or not axis.exchangeable, names[name]
            total += axis.exchangeable
    return total


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_names_no_more_axes_are_exchangeable_than_with_them(name: str) -> None:
    tensors = views(ARCHITECTURES[name])
    assert assert_safe(exchangeable_by_name(laid_out(name)), tensors) > 0


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "moe" not in name and "oss" not in name])
def test_without_names_and_turned_no_more_axes_are_exchangeable(name: str) -> None:
    tensors = [
        Shape(one.name, one.shape[::-1] if len(one.shape) == 2 and "embed" not in one.name else one.shape)
        for one in views(ARCHITECTURES[name])
    ]
    known = exchangeable_by_name(laid_out(name))
    flipped = {
        one.name: known[one.name][::-1] if len(one.shape) == 2 and "embed" not in one.name else known[one.name]
        for one in tensors
    }
    assert_safe(flipped, tensors)


@given(
    name=st.sampled_from(sorted(ARCHITECTURES)),
    way=st.sampled_from(["layers", "as stored", "sorted"]),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.05, 1),
)
@settings(max_examples=100, deadline=None)
def test_of_any_piece_of_a_model_no_more_axes_are_exchangeable(name: str, way: str, seed: int, share: float) -> None:
    """Some of the layers, or the tensors of one shard, cut anywhere in the order of the file or of the names."""
    # Its decoder has maps of the shape of its MLPs' second matrices. A piece that happens to have as many of these in
    # all as of MLPs' first ones looks like MLPs and nothing else.
    assume(way == "layers" or name != "protein-mpnn")
    tensors = views(ARCHITECTURES[name])
    if way == "layers":
        generator = np.random.default_rng(seed)
        layers = {number for number in range(64) if generator.random() < share}
        numbers = [re.search(r"\.(\d+)\.", f".{one.name}") for one in tensors]
        kept = [one for one, found in zip(tensors, numbers, strict=True) if found is None or int(found[1]) in layers]
    else:
        tensors = sorted(tensors, key=lambda one: one.name) if way == "sorted" else tensors
        start = seed % len(tensors)
        kept = tensors[start : start + max(1, int(share * share * len(tensors)))]
    assert_safe(exchangeable_by_name(laid_out(name)), kept)


def test_minilm_without_names_has_the_same_axes_but_in_attention() -> None:
    tensors = views(ARCHITECTURES["minilm-l6"])
    blank, names = nameless([Shape(one.name, one.shape) for one in tensors if "position_ids" not in one.name])
    axes = {one.name: one.axes for one in laid_out("minilm-l6").tensors}
    for one in lay_out(blank, {}).tensors:
        expected = axes[names[one.name]]
        shape = one.view.shape
        if len(shape) == 2 and shape[0] != shape[1]:
            assert [axis.exchangeable for axis in one.axes] == [axis.exchangeable for axis in expected]
            assert all(
                axis in {Axis.UNKNOWN, one_expected} for axis, one_expected in zip(one.axes, expected, strict=True)
            )
        else:
            assert one.axes == (Axis.UNKNOWN, Axis.UNKNOWN)


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt2", "phi-3-mini", "phi-3-medium", "gemma-2-2b", "qwen1.5-moe"])
def test_width_and_neurons_are_found_without_names(name: str) -> None:
    layout = laid_out(name)
    blank, _ = nameless(views(ARCHITECTURES[name]))
    found = lay_out(blank, {})
    assert found.width == layout.width
    assert found.family is None
    sizes = {one.view.shape[axis] for one in found.tensors for axis in (0, 1) if one.axes[axis] is Axis.NEURON}
    assert sizes == {layout.tensors[mlp.gate].view.shape[0] for mlp in layout.mlps}


@pytest.mark.parametrize("name", ["phi-3-mini", "phi-3-medium", "gpt2", "gpt2-medium", "timm-vit-b16"])
def test_fused_blocks_without_names_are_split_as_with_them(name: str) -> None:
    blank, names = nameless(views(ARCHITECTURES[name]))
    with_names = Counter((stored(one)[0], one.view.shape) for one in laid_out(name).tensors if len(one.view.shape) == 2)
    without = Counter(
        (names[stored(one)[0]], one.view.shape if one.oriented else max(one.view.shape, one.view.shape[::-1]))
        for one in lay_out(blank, {}).tensors
        if len(one.view.shape) == 2
    )
    fused = [name for name, _ in with_names if sum(count for key, count in with_names.items() if key[0] == name) > 1]
    assert fused
    for key, count in with_names.items():
        if key[0] in fused:
            assert without[key] == count


def test_fused_attention_narrower_than_the_stream_is_split_without_names() -> None:
    """Qwen3-4B's sizes with query, key and value in one block, and gate and up in one."""
    shapes: Shapes = {"e": (151936, 2560)}
    for layer in range(36):
        shapes |= {f"{layer} qkv": (6144, 2560), f"{layer} o": (2560, 4096)}
        shapes |= {f"{layer} gate_up": (19456, 2560), f"{layer} down": (2560, 9728)}
    found = Counter((one.role, one.view.shape) for one in lay_out(views(shapes), {}).tensors)
    assert found[Role.QUERY, (4096, 2560)] == found[Role.KEY, (1024, 2560)] == found[Role.GATE, (9728, 2560)] == 36


def test_fused_attention_that_may_as_well_be_gate_and_up_is_left_whole() -> None:
    """Gemma-2-2B's sizes: with half as many key heads, the block is twice as high as the output is wide."""
    shapes: Shapes = {"e": (256000, 2304)}
    for layer in range(26):
        shapes |= {f"{layer} qkv": (4096, 2304), f"{layer} o": (2304, 2048)}
        shapes |= {f"{layer} gate_up": (18432, 2304), f"{layer} down": (2304, 9216)}
    layout = lay_out(views(shapes), {})
    assert [one.view.shape for one in layout.tensors] == list(shapes.values())
    assert Axis.NEURON not in {axis for one in layout.tensors for axis in one.axes}


def test_fused_attention_beside_an_ungated_mlp_is_not_taken_for_gate_and_up() -> None:
    shapes: Shapes = {"e": (50000, 2304)}
    for layer in range(26):
        shapes |= {f"{layer} qkv": (4096, 2304), f"{layer} o": (2304, 2048)}
        shapes |= {f"{layer} in": (9216, 2304), f"{layer} out": (2304, 9216)}
    layout = lay_out(views(shapes), {})
    assert not any(axis.exchangeable for one in layout.tensors if 2048 in one.view.shape for axis in one.axes[::-1][:1])
    assert not any(one.axes[0].exchangeable for one in layout.tensors if one.view.shape == (4096, 2304))


def test_a_fused_block_and_its_output_alone_are_left_whole() -> None:
    shapes: Shapes = {name: shape for layer in range(5) for name, shape in (
        (f"{layer} a", (4096, 2304)), (f"{layer} b", (2304, 2048)))}  # fmt: skip
    assert not any(axis is Axis.NEURON for one in lay_out(views(shapes), {}).tensors for axis in one.axes)


def test_layers_stacked_in_one_tensor_come_apart_without_names() -> None:
    shapes: Shapes = {
        "a": (4, 512, 192), "b": (4, 512, 192), "c": (4, 192, 512), "d": (4, 192, 192), "e": (4, 192, 192),
        "f": (4, 64, 192), "g": (4, 64, 192), "h": (1280, 192), "i": (1280, 192), "j": (4, 192),
    }  # fmt: skip
    layout = lay_out(views(shapes), {})
    assert layout.width == 192
    found = Counter((one.view.shape, one.axes) for one in layout.tensors)
    assert found[(512, 192), (Axis.NEURON, Axis.RESIDUAL)] == 8
    assert found[(192, 512), (Axis.RESIDUAL, Axis.NEURON)] == 4
    assert found[(64, 192), (Axis.UNKNOWN, Axis.RESIDUAL)] == 8
    assert found[(4, 192), (Axis.UNKNOWN, Axis.UNKNOWN)] == 1


def test_stacks_of_stacks_come_apart_and_convolutions_do_not() -> None:
    shapes: Shapes = {
        "a": (3, 8, 64, 176),
        "b": (3, 8, 176, 64),
        "c": (64, 64, 9),
        "d": (64, 3, 32, 32),
        "e": (64, 64, 3, 3),
    }
    layout = lay_out(views(shapes), {})
    found = Counter(one.view.shape for one in layout.tensors)
    assert found == {(64, 176): 24, (176, 64): 24, (64, 64, 9): 1, (64, 3, 32, 32): 1, (64, 64, 3, 3): 1}


def test_the_one_layer_of_a_fused_mlp_is_joined_without_names() -> None:
    shapes: Shapes = {"a": (352, 64), "b": (64, 176), "c": (64, 64), "d": (64, 64), "e": (32, 64), "f": (32, 64)}
    layout = lay_out(views(shapes), {})
    assert [(layout.tensors[mlp.gate].name, layout.tensors[mlp.down].name) for mlp in layout.mlps] == [("a[gate]", "b")]


@given(
    name=st.sampled_from(["gpt2", "clip-b32", "deepseek-v2-lite", "gpt-oss-narrow", "llava"]),
    random=st.randoms(use_true_random=False),
    named=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(name: str, random: Random, named: bool) -> None:
    tensors = views(ARCHITECTURES[name])
    if not named:
        tensors, _ = nameless(tensors)
    shuffled = list(tensors)
    random.shuffle(shuffled)

    def said(layout: Layout) -> dict[str, tuple[object, ...]]:
        return {
            one.name: (one.role, one.layer, one.expert, one.axes, one.oriented, one.view.shape)
            for one in layout.tensors
        }

    assert said(lay_out(tensors, {})) == said(lay_out(shuffled, {}))


def test_a_mixture_of_45000_tensors_is_laid_out_whole() -> None:
    shapes = architectures.deepseek_v3()
    assert len(shapes) > 45_000
    layout = lay_out(views(shapes), {})
    assert layout.family == "deepseek"
    assert len(layout.mlps) == 3 + 59 * 257
    assert not layout.notes
    latent = [one for one in layout.tensors if one.role is Role.LATENT_DOWN]
    assert Counter(one.view.shape for one in latent) == {(1536, 7168): 62, (512, 7168): 62}


def test_scales_of_a_quantised_checkpoint_are_no_weights() -> None:
    layout = lay_out(views(architectures.deepseek_v3(4, 4, scales=True)), {})
    scales = [one for one in layout.tensors if one.name.endswith("_scale_inv")]
    assert scales
    assert {one.role for one in scales} == {Role.BUFFER}


# --- values ---------------------------------------------------------------------------------------------------------

WIDTH, HEADS, SIZE, KEYS, NEURONS = 12, 4, 3, 2, 20


def separate(layers: int = 2) -> dict[str, Array]:
    generator = np.random.default_rng(5)
    shapes = architectures.llama(layers, WIDTH, HEADS * SIZE, KEYS * SIZE, NEURONS, 30)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def values_of(
    weights: Mapping[str, Array], hints: Mapping[str, str] | None = None
) -> dict[tuple[Role, int | None], Array]:
    layout = lay_out([Values(name, array) for name, array in weights.items()], hints or {})
    return {
        (one.role, one.layer): read(one.view)
        for one in layout.tensors
        if one.layer is not None and one.role is not Role.NORM_GAIN
    }


def assert_same(left: Mapping[tuple[Role, int | None], Array], right: Mapping[tuple[Role, int | None], Array]) -> None:
    assert left.keys() == right.keys()
    for key, array in left.items():
        assert np.array_equal(array, right[key]), key


def replaced(weights: Mapping[str, Array], **fused: tuple[str, ...]) -> dict[str, Array]:
    """Weights with some modules of each layer joined along the rows."""
    result = dict(weights)
    for layer in range(2):
        at = f"model.layers.{layer}."
        for new, old in fused.items():
            module = old[0].split(".")[0]
            result[f"{at}{module}.{new}.weight"] = np.concatenate([result.pop(f"{at}{one}.weight") for one in old])
    return result


def test_fused_and_separate_projections_have_equal_values() -> None:
    weights = separate()
    fused = replaced(
        weights,
        qkv_proj=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        gate_up_proj=("mlp.gate_proj", "mlp.up_proj"),
    )
    assert_same(values_of(fused), values_of(weights))


def test_values_are_equal_when_everything_is_stored_the_other_way_round() -> None:
    weights = separate()
    turned = {name: np.ascontiguousarray(array.T) if "_proj" in name else array for name, array in weights.items()}
    assert_same(values_of(turned), values_of(weights))


def test_values_of_a_conv1d_block_are_those_of_its_parts() -> None:
    generator = np.random.default_rng(5)
    parts = [generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) for _ in range(3)]
    inner, outer = (generator.standard_normal((4 * WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    weights = {
        "h.0.attn.c_attn.weight": np.ascontiguousarray(np.concatenate(parts).T),
        "h.0.attn.c_attn.bias": np.arange(3 * WIDTH, dtype=np.float32),
        "h.0.attn.c_proj.weight": parts[0],
        "h.0.mlp.c_fc.weight": np.ascontiguousarray(inner.T),
        "h.0.mlp.c_proj.weight": outer,
    }
    found = values_of(weights)
    for role, part in zip((Role.QUERY, Role.KEY, Role.VALUE), parts, strict=True):
        assert np.array_equal(found[role, 0], part)
    assert np.array_equal(found[Role.FC_IN, 0], inner)
    assert np.array_equal(found[Role.FC_OUT, 0], outer.T)
    assert np.array_equal(found[Role.ATTENTION_OUTPUT, 0], parts[0].T)


def test_interleaved_heads_have_the_values_of_separate_ones() -> None:
    generator = np.random.default_rng(5)
    parts = [generator.standard_normal((HEADS, SIZE, WIDTH)).astype(np.float32) for _ in range(3)]
    shapes = architectures.neox(1, WIDTH, 30)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if "attention.bias" not in name}
    weights["gpt_neox.layers.0.attention.query_key_value.weight"] = np.stack(parts, 1).reshape(-1, WIDTH)
    found = values_of(weights, {"num_attention_heads": str(HEADS)})
    for role, part in zip((Role.QUERY, Role.KEY, Role.VALUE), parts, strict=True):
        assert np.array_equal(found[role, 0], part.reshape(-1, WIDTH))


def test_stacked_and_alternating_experts_have_the_values_of_separate_ones() -> None:
    generator = np.random.default_rng(5)
    count = 3
    gate, up, down = (generator.standard_normal((count, NEURONS, WIDTH)).astype(np.float32) for _ in range(3))
    attention = {f"model.layers.0.self_attn.{part}_proj.weight": np.zeros((6, WIDTH), np.float32) for part in "kv"}
    alternating = attention | {
        "model.layers.0.mlp.experts.gate_up_proj": np.stack([gate, up], 2).reshape(count, -1, WIDTH).transpose(0, 2, 1),
        "model.layers.0.mlp.experts.gate_up_proj_bias": np.zeros((count, 2 * NEURONS), np.float32),
        "model.layers.0.mlp.experts.down_proj": down,
        "model.layers.0.mlp.router.weight": np.zeros((count, WIDTH), np.float32),
    }
    halves = attention | {
        "model.layers.0.mlp.experts.gate_up_proj": np.concatenate([gate, up], 1).transpose(0, 2, 1),
        "model.layers.0.mlp.experts.down_proj": down,
        "model.layers.0.mlp.gate.weight": np.zeros((count, WIDTH), np.float32),
    }
    for weights in (alternating, halves):
        layout = lay_out([Values(name, np.ascontiguousarray(array)) for name, array in weights.items()], {})
        assert [mlp.expert for mlp in layout.mlps] == [0, 1, 2]
        for mlp in layout.mlps:
            assert mlp.up is not None
            assert mlp.expert is not None
            assert np.array_equal(read(layout.tensors[mlp.gate].view), gate[mlp.expert])
            assert np.array_equal(read(layout.tensors[mlp.up].view), up[mlp.expert])
            assert np.array_equal(read(layout.tensors[mlp.down].view), down[mlp.expert].T)


def test_low_rank_adapters_keep_the_axes_of_their_base() -> None:
    at = "base_model.model.model.layers.0.self_attn.q_proj."
    layout = lay_out([Shape(f"{at}lora_A.weight", (8, 64)), Shape(f"{at}lora_B.weight", (96, 8)), *small_llama()], {})
    first, second = layout.tensors[:2]
    assert first.axes == (Axis.UNIT, Axis.RESIDUAL)
    assert second.axes == (Axis.CHANNEL, Axis.UNIT)


def _component(name: str, tensors: Sequence[TensorView]) -> list[TensorView]:
    return [Shape(f"{name}.{one.name}", one.shape) for one in tensors]


def test_hints_of_a_component_are_about_its_tensors_alone() -> None:
    """Two fused encoders in one folder, whose configs say other numbers of heads, and other activations of two MLPs."""
    tensors = [
        *_component("text_encoder", views(architectures.neox(2, 64, 100))),
        *_component("text_encoder_2", views(architectures.neox(2, 64, 100))),
        *_component("prior", small_llama()),
        *_component("decoder", small_llama()),
    ]
    hints = {
        "text_encoder.config.num_attention_heads": "4",
        "text_encoder_2.config.num_attention_heads": "8",
        "prior.config.hidden_act": "gelu",
        "decoder.config.hidden_act": "relu",
        "config.hidden_act": "tanh",
        "config.num_attention_heads": "16",
    }
    layout = lay_out(tensors, hints)
    alone = {heads: lay_out(views(architectures.neox(2, 64, 100)), {"num_attention_heads": heads}) for heads in "48"}
    for component, heads in (("text_encoder", "4"), ("text_encoder_2", "8")):
        found = [one for one in layout.tensors if one.name.startswith(f"{component}.")]
        wanted = alone[heads].tensors
        assert [(one.role, one.view.shape) for one in found] == [(one.role, one.view.shape) for one in wanted]
        runs = [getattr(one.view, "runs", None) for one in found]
        assert runs == [getattr(one.view, "runs", None) for one in wanted]
        assert any(runs)
    acts = {layout.tensors[mlp.gate].name.partition(".")[0]: mlp.activation for mlp in layout.mlps}
    assert (acts["prior"], acts["decoder"]) == ("gelu", "relu")
    assert "tanh" not in acts.values()


def test_config_of_a_component_with_two_stacks_says_nothing_about_activations() -> None:
    tensors = _component(
        "m", [*_component("language_model", small_llama()), *_component("vision_tower", small_llama())]
    )
    layout = lay_out(tensors, {"m.config.hidden_act": "tanh"})
    assert {mlp.activation for mlp in layout.mlps} == {"silu"}
