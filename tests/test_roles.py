"""Roles: the tables of names, the parts of fused blocks, and what sizes say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerprint import dtypes
from fingerprint.roles.parts import EveryRow, Heads, alternating, heads_from, runs_of, split, transposed, unstacked
from fingerprint.roles.patterns import Names
from fingerprint.roles.sizes import understand
from fingerprint.roles.tables import Kind, Split, load_tables
from fingerprint.tensors import Array, Transposed
from fingerprint.vocabulary import Axis, Role


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


def numbered(*shape: int) -> Values:
    return Values("block", np.arange(math.prod(shape), dtype=np.float32).reshape(shape))


# --- tables of names ------------------------------------------------------------------------------------------------


def test_every_table_is_read_and_names_real_roles_and_axes() -> None:
    tables = load_tables()
    assert len(tables.tables) > 35
    assert {"llama", "gpt2", "bert", "t5", "gguf", "deepseek", "gpt_oss"} <= {table.family for table in tables.tables}
    for entries in map(tables.entries, tables.said):
        assert entries is not None
        assert len({entry.table for entry in entries}) == len(entries)
        assert len({len(entry.numbers) for entry in entries}) == 1


def test_fused_entries_say_how_they_are_split_and_others_have_one_part() -> None:
    tables = load_tables()
    for name in tables.said:
        for entry in tables.entries(name) or ():
            assert (len(entry.parts) > 1) == (entry.split is not Split.NONE)


def test_every_table_knows_gate_and_down_of_the_same_mlps() -> None:
    """A table that has an MLP's first matrix has its last one too, in the same group."""
    slots: dict[int, Counter[tuple[str, bool]]] = {}
    tables = load_tables()
    for name in tables.said:
        for entry in tables.entries(name) or ():
            for part in entry.parts:
                if part.role in {Role.GATE, Role.FC_IN} and entry.kind is Kind.MATRIX:
                    slots.setdefault(entry.table, Counter())[part.group, True] += 1
                if part.role in {Role.DOWN, Role.FC_OUT} and entry.kind is Kind.MATRIX:
                    slots.setdefault(entry.table, Counter())[part.group, False] += 1
    for found in slots.values():
        assert {group for group, first in found if first} == {group for group, first in found if not first}


@pytest.mark.parametrize(
    ("name", "stack", "layer", "expert"),
    [
        ("model.layers.7.self_attn.q_proj.weight", "", 7, None),
        ("layers.7.self_attn.q_proj.weight", "", 7, None),
        ("module.model.layers.7.self_attn.q_proj.weight", "", 7, None),
        ("_orig_mod.model.layers.7._orig_mod.self_attn.q_proj.weight", "", 7, None),
        ("base_model.model.model.layers.7.self_attn.q_proj.base_layer.weight", "", 7, None),
        ("language_model.model.layers.7.self_attn.q_proj.weight", "text", 7, None),
        ("vision_tower.vision_model.encoder.layers.7.self_attn.q_proj.weight", "vision", 7, None),
        ("0.auto_model.encoder.layer.3.attention.self.query.weight", "encoder", 3, None),
        ("model.layers.3.mlp.experts.200.up_proj.weight", "", 3, 200),
        ("decoder.block.2.layer.1.EncDecAttention.k.weight", "decoder", 2, None),
        ("blk.11.ffn_gate.3.weight", "", 11, 3),
    ],
)
def test_names_are_found_behind_any_prefix(name: str, stack: str, layer: int, expert: int | None) -> None:
    match = Names().match(name)
    assert match is not None
    entry = match.entries[0]
    assert (match.stack, match.number(entry, "layer"), match.number(entry, "expert")) == (stack, layer, expert)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "weight",
        "model.layers.q_proj.weight",
        "model.layers.-1.self_attn.q_proj.weight",
        "model.layers.²" + ".self_attn.q_proj.weight",
        "model.layers.99999999999999999999.self_attn.q_proj.weight",
        "model.layers.3.self_attn.q_proj.weight" + ".x" * 40,
        "a." * 300 + "lm_head.weight",
        "x" * 600,
        "model.layers.0.other.norm.weight",
    ],
)
def test_names_that_no_table_has_are_not_found(name: str) -> None:
    assert Names().match(name) is None


def test_low_rank_adapters_are_found_under_the_name_of_their_base() -> None:
    match = Names().match("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    assert match is not None
    assert match.adapter == "A"
    assert match.entries[0].parts[0].role is Role.QUERY


def test_companions_of_quantised_weights_are_buffers() -> None:
    for name in ("model.layers.0.mlp.up_proj.weight_scale_inv", "h.0.attn.masked_bias", "encoder.qzeros"):
        match = Names().match(name)
        assert match is not None
        assert match.entries[0].kind is Kind.BUFFER


@given(st.text(max_size=40))
def test_no_name_is_too_strange_to_match(name: str) -> None:
    Names().match(name)
    Names().match(f"model.layers.{name}.self_attn.q_proj.weight")


# --- parts of fused blocks ------------------------------------------------------------------------------------------

LABELS = ("query", "key", "value")


@given(
    heads=st.integers(1, 4), per_key=st.integers(1, 3), size=st.integers(1, 4), width=st.integers(1, 5),
    how=st.sampled_from([Split.GROUPED, Split.FALCON, Split.PER_HEAD, Split.EQUAL]),
)  # fmt: skip
def test_parts_of_a_block_hold_each_of_its_rows_once(
    heads: int, per_key: int, size: int, width: int, how: Split
) -> None:
    keys, queries = heads, heads * per_key
    if how in {Split.PER_HEAD, Split.EQUAL}:
        keys = queries
    rows = (queries + 2 * keys) * size
    runs = runs_of(how, rows, 3, Heads(queries, keys, queries * size, queries * size))
    assert runs is not None
    block = numbered(rows, width)
    parts = split(block, runs, LABELS)
    read = [part.read(0, math.prod(part.shape)).reshape(part.shape) for part in parts]
    assert [len(part) for part in read] == [queries * size, keys * size, keys * size]
    assert sorted(np.concatenate(read)[:, 0]) == list(block.array[:, 0])
    assert [part.name for part in parts] == ["block[query]", "block[key]", "block[value]"]


def test_interleaved_heads_are_gathered() -> None:
    """NeoX: (heads, 3, size, width)."""
    block = np.arange(4 * 3 * 2 * 5, dtype=np.float32).reshape(4, 3, 2, 5)
    runs = runs_of(Split.PER_HEAD, 24, 3, Heads(4, None, None, 8))
    assert runs is not None
    for place, part in enumerate(split(Values("w", block.reshape(24, 5)), runs, LABELS)):
        assert np.array_equal(part.read(0, 40).reshape(8, 5), block[:, place].reshape(8, 5))


def test_groups_of_heads_are_gathered() -> None:
    """Falcon-40B: (key heads, queries of each + 2, size, width)."""
    block = np.arange(2 * 6 * 3 * 5, dtype=np.float32).reshape(2, 6, 3, 5)
    runs = runs_of(Split.FALCON, 36, 3, Heads(8, 2, 24, 24))
    assert runs is not None
    query, key, value = split(Values("w", block.reshape(36, 5)), runs, LABELS)
    assert np.array_equal(query.read(0, 120).reshape(24, 5), block[:, :4].reshape(24, 5))
    assert np.array_equal(key.read(0, 30).reshape(6, 5), block[:, 4].reshape(6, 5))
    assert np.array_equal(value.read(0, 30).reshape(6, 5), block[:, 5].reshape(6, 5))


@pytest.mark.parametrize(
    ("how", "rows", "heads"),
    [
        (Split.PER_HEAD, 24, Heads(None, None, 8, 8)),
        (Split.PER_HEAD, 24, Heads(5, None, 8, 8)),
        (Split.PER_HEAD, 20, Heads(4, None, 8, 8)),
        (Split.GROUPED, 25, Heads(None, None, 8, 8)),
        (Split.GROUPED, 18, Heads(None, None, 8, 8)),
        (Split.GROUPED, 20, Heads(None, None, None, 8)),
        (Split.FALCON, 16, Heads(None, None, 8, 8)),
        (Split.LATENT, 16, Heads(None, None, None, 8)),
        (Split.LATENT, 16, Heads(None, None, 16, 8)),
        (Split.EQUAL, 16, Heads(None, None, 8, 8)),
        (Split.EQUAL, 0, Heads(None, None, 8, 8)),
    ],
)
def test_blocks_that_do_not_add_up_are_not_split(how: Split, rows: int, heads: Heads) -> None:
    assert runs_of(how, rows, 3, heads) is None


@given(st.integers(1, 9), st.integers(1, 5), st.integers(2, 3), st.data())
def test_alternating_rows_are_read_in_any_range(rows: int, width: int, step: int, data: st.DataObject) -> None:
    block = numbered(rows * step, width)
    for first, part in enumerate(alternating(block, LABELS[:step])):
        flat = block.array[first::step].reshape(-1)
        start = data.draw(st.integers(0, flat.size))
        stop = data.draw(st.integers(start, flat.size))
        assert part.shape == (rows, width)
        assert np.array_equal(part.read(start, stop), flat[start:stop])


def test_alternating_rows_of_a_large_block_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fingerprint.roles.parts._PIECE", 12)
    part = EveryRow(numbered(40, 5), "part", 1, 2)
    assert np.array_equal(part.read(3, 97), part.source.read(0, 200).reshape(40, 5)[1::2].reshape(-1)[3:97])


def test_experts_come_off_a_stack_and_turn() -> None:
    block = numbered(3, 4, 5)
    one = unstacked(block, 2)
    assert one.name == "block[2]"
    assert np.array_equal(transposed(one).read(0, 20).reshape(5, 4), block.array[2].T)
    assert transposed(Transposed(block, "x") if len(block.shape) == 2 else transposed(one)).shape == (4, 5)


@pytest.mark.parametrize("claim", ["", "0", "-8", "many", "8.0", "99999999", "²"])
def test_claims_that_are_no_number_of_heads_are_not_heard(claim: str) -> None:
    assert heads_from({"num_attention_heads": claim}, 8, None).queries is None


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_features_and_classes_of_a_plain_network_are_not_exchangeable() -> None:
    sizes = understand({(256, 784): 1, (128, 256): 1, (10, 128): 1}, {})
    assert sizes.axes((256, 784)) == (Axis.UNIT, Axis.UNKNOWN)
    assert sizes.axes((128, 256)) == (Axis.UNIT, Axis.UNIT)
    assert sizes.axes((10, 128)) == (Axis.UNKNOWN, Axis.UNIT)


def test_pixels_that_go_in_and_come_out_are_not_exchangeable() -> None:
    """An autoencoder, symmetric or not, closes a circle through its features."""
    symmetric = {(256, 784): 1, (32, 256): 1, (256, 32): 1, (784, 256): 1}
    lopsided = {(256, 784): 1, (32, 256): 1, (128, 32): 1, (784, 128): 1}
    for planes in (symmetric, lopsided):
        sizes = understand(planes, {})
        for plane in planes:
            axes = sizes.axes(plane)
            assert not axes[plane.index(784)].exchangeable if 784 in plane else True


def test_codebooks_stay_tokens_however_many_there_are() -> None:
    """MusicGen's sizes: tables and heads of several codebooks, never both ways round."""
    sizes = understand({(2049, 1024): 8, (4096, 1024): 24, (1024, 4096): 24, (1024, 1024): 192}, {})
    assert sizes.axes((2049, 1024)) == (Axis.UNKNOWN, Axis.RESIDUAL)
    assert sizes.axes((4096, 1024)) == (Axis.NEURON, Axis.RESIDUAL)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_alone_with_fused_attention_is_understood(layers: int, turned: bool) -> None:
    def understood(*planes: tuple[int, int]) -> frozenset[int]:
        return understand({plane[:: -1 if turned else 1]: layers for plane in planes}, {}).neurons

    whole = ((192, 64), (64, 64), (256, 64), (64, 256))
    assert understood(*whole) == {256}
    # The gates of a recurrent cell, on an input of another size; two pairs that may be the MLP; or none.
    assert not understood(*whole, (192, 100))
    assert not understood(*whole, (300, 64), (64, 300))
    assert not understood(*whole[:2])


def test_gates_of_a_recurrent_cell_are_not_exchangeable() -> None:
    """Two layers of an LSTM of 128 cells on 64 features, and the layer of 512 units after them."""
    sizes = understand({(512, 64): 1, (512, 128): 3, (512, 10): 1, (2, 512): 1}, {})
    assert sizes.axes((512, 64))[0] is Axis.UNKNOWN
    assert sizes.axes((512, 128))[0] is Axis.UNKNOWN


def test_hidden_channels_of_convolutions_are_units() -> None:
    """MTCNN's first network, and a classifier on top."""
    kernels = {(10, 3, 3, 3): 1, (16, 10, 3, 3): 1, (32, 16, 3, 3): 1, (2, 32, 1, 1): 1, (4, 32, 1, 1): 1}
    sizes = understand({}, kernels)
    axes = {shape[0]: sizes.kernel_axes(shape)[0] for shape in kernels}
    assert axes == {10: Axis.UNIT, 16: Axis.UNIT, 32: Axis.UNIT, 2: Axis.UNKNOWN, 4: Axis.UNKNOWN}


def test_channels_of_grouped_convolutions_are_not_exchangeable() -> None:
    kernels = {(64, 3, 7, 7): 1, (128, 64, 1, 1): 3, (128, 4, 3, 3): 3, (256, 128, 1, 1): 3, (10, 256, 1, 1): 1}
    sizes = understand({}, kernels)
    assert sizes.kernel_axes((128, 4, 3, 3))[0] is Axis.UNKNOWN
    assert sizes.kernel_axes((128, 64, 1, 1))[0] is Axis.UNKNOWN
    assert sizes.kernel_axes((256, 128, 1, 1))[0] is Axis.UNIT


def test_concatenated_features_are_not_exchangeable() -> None:
    """ProteinMPNN's sizes: messages of three or four vectors of width 128, letters of 21."""
    planes = {
        (128, 384): 6, (128, 512): 9, (512, 128): 6, (128, 128): 19, (128, 416): 1, (21, 128): 2, (16, 66): 1,
    }  # fmt: skip
    sizes = understand(planes, {})
    assert sizes.width == 128
    assert not sizes.fused
    assert sizes.axes((128, 384)) == (Axis.RESIDUAL, Axis.UNKNOWN)
    assert sizes.axes((512, 128)) == (Axis.UNKNOWN, Axis.UNKNOWN)
    assert sizes.axes((21, 128)) == (Axis.UNKNOWN, Axis.RESIDUAL)
    assert sizes.axes((128, 128)) == (Axis.UNKNOWN, Axis.UNKNOWN)


def test_attention_as_wide_as_keys_and_queries_of_one_shape_is_no_gated_mlp() -> None:
    """Query, key, value and fc-in of one shape against output and fc-out: two to one, as in a gated MLP."""
    sizes = understand({(1024, 512): 24, (512, 1024): 12, (32000, 512): 1}, {})
    assert not sizes.neurons


def test_inner_width_of_attention_is_not_taken_for_neurons() -> None:
    """Qwen3-0.6B: keys as wide as the stream, queries twice as wide, and the MLP."""
    planes = {(2048, 1024): 28, (1024, 2048): 28, (1024, 1024): 56, (3072, 1024): 56, (1024, 3072): 28}
    sizes = understand(planes, {})
    assert sizes.neurons == {3072}
    assert sizes.axes((2048, 1024)) == (Axis.UNKNOWN, Axis.RESIDUAL)
    assert sizes.axes((1024, 2048)) == (Axis.UNKNOWN, Axis.UNKNOWN)


def test_biases_of_stacked_matrices_are_not_exchangeable() -> None:
    planes = {(4864, 896): 48, (896, 4864): 24, (896, 896): 48, (128, 896): 48, (24, 896): 5}
    assert understand(planes, {}, {24}).axes((24, 896)) == (Axis.UNKNOWN, Axis.UNKNOWN)


def test_many_distinct_shapes_are_understood_in_one_pass() -> None:
    planes = {(100 + number, 101 + number): 1 for number in range(20_000)}
    sizes = understand(planes, {})
    assert sizes.axes((100, 101))[0] is Axis.UNKNOWN
    assert sizes.axes((101, 102))[0] is Axis.UNIT


def test_many_shapes_on_one_width_are_understood_in_one_pass() -> None:
    """Each size could be a gated MLP's, or a fused block: nothing may look at all the others for each."""
    gated = {plane: count for size in range(1000, 21_000) for plane, count in (((size, 64), 2), ((64, size), 1))}
    assert not understand(gated, {}).neurons
    fused = {(1000 + number, 64): 1 for number in range(20_000)}
    assert understand(fused, {}).width == 64
