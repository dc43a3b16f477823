"""Writes the folders of Orbax, zarr and TensorStore that the tests read, each as an archive, and what is in them.

pip install orbax-checkpoint==0.12.8 tensorstore==0.1.86 zarr==3.1.6 jax==0.10.2
XLA_FLAGS=--xla_force_host_platform_device_count=4 JAX_PLATFORMS=cpu python make.py
"""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tensorstore as ts
import zarr
from jax.sharding import NamedSharding, PartitionSpec

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(4)


def whole(*shape, dtype="float32"):
    """Small whole numbers, exact in every type."""
    return RANDOM.integers(-8, 8, shape).astype(dtype)


PARAMS = {
    "Dense_0": {"kernel": whole(6, 4), "bias": whole(4)},
    "layers": [{"w": whole(3, 5)}, {"w": whole(3, 5)}],
    "embed": {"embedding": whole(10, 4)},
}


def packed(name, folder):
    def plain(member):
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
        archive.add(folder, name, filter=plain)


def tree(params):
    state = optax.adam(1e-3).init(params)
    return {"params": params, "opt_state": state, "step": 7}


def orbax(folder):
    params = jax.tree.map(jnp.asarray, PARAMS)
    params["Dense_0"]["bias"] = params["Dense_0"]["bias"].astype(jnp.bfloat16)
    for name, database, third in (("folders", False, False), ("shards", False, True), ("database", True, False)):
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=database, use_zarr3=third)
        ocp.Checkpointer(handler).save(folder / name, tree(params))
        packed(name, folder / name)
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    spread = {
        "rows": jax.device_put(PARAMS["Dense_0"]["kernel"], NamedSharding(mesh, PartitionSpec("a"))),
        "both": jax.device_put(PARAMS["Dense_0"]["kernel"], NamedSharding(mesh, PartitionSpec("a", "b"))),
        "columns": jax.device_put(PARAMS["embed"]["embedding"], NamedSharding(mesh, PartitionSpec(None, "b"))),
    }
    for name, database in (("grid", False), ("grid_database", True)):
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=database)).save(folder / name, spread)
        packed(name, folder / name)
    with ocp.CheckpointManager(folder / "manager") as manager:
        items = {"state": ocp.args.StandardSave(params), "notes": ocp.args.JsonSave({"a": 1})}
        manager.save(3, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    packed("manager", folder / "manager")


def databases(folder):
    """A tree of nodes of several levels, small values inside them and large ones outside, packed and not."""
    values = {f"layers.{number}.w": whole(4 + 20 * (number % 3 == 0)) for number in range(24)}
    context = ts.Context()
    for key, value in values.items():
        spec = {"driver": "zarr", "kvstore": {"driver": "memory", "path": f"{key}/"}, "dtype": "float32"}
        spec["metadata"] = {"compressor": None, "chunks": [24], "shape": [value.size]}
        ts.open(spec, create=True, context=context).result()[...] = value
    memory = ts.KvStore.open("memory://", context=context).result()
    for name, compression in (("packed_tree", {"id": "zstd"}), ("plain_tree", None)):
        config = {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 100, "compression": compression}
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder / name}/", "config": config}).result()
        with ts.Transaction() as transaction:
            for key in memory.list().result():
                store.with_transaction(transaction)[key] = memory[key]
        packed(name, folder / name)
    return values


def arrays(folder):
    """Every codec and order that is read, and one that is not, by zarr itself and by TensorStore."""
    expected = {}
    top = zarr.open_group(folder / "second", mode="w", zarr_format=2)
    from numcodecs import BZ2, GZip, Zlib, Zstd

    cases = {
        "zlib": {"compressors": Zlib()}, "gzip": {"compressors": GZip()}, "zstd": {"compressors": Zstd()},
        "stored": {"compressors": None}, "columns": {"compressors": None, "order": "F"},
        "slash": {"compressors": Zlib(), "order": "F", "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    }  # fmt: skip
    for name, options in cases.items():
        expected[f"second.a.{name}"] = whole(7, 10)
        top.create_array(f"a/{name}", shape=(7, 10), chunks=(3, 4), dtype="float32", **options)[...] = expected[
            f"second.a.{name}"
        ]
    expected["second.big"] = whole(5, dtype=">f4")
    top.create_array("big", data=expected["second.big"], compressors=None)
    expected["second.cube"] = whole(3, 4, 5, dtype="int16")
    top.create_array("cube", shape=(3, 4, 5), chunks=(2, 3, 2), dtype="int16", order="F", compressors=None)[...] = (
        expected["second.cube"]
    )
    expected["second.filled"] = np.full((6, 4), 2.5, "float32")
    expected["second.filled"][:2, :2] = 1
    some = top.create_array("filled", shape=(6, 4), chunks=(2, 2), dtype="float32", fill_value=2.5)
    some[:2, :2] = 1
    expected["second.empty"] = np.zeros((4, 2), "float32")
    top.create_array("empty", shape=(4, 2), chunks=(2, 2), dtype="float32", fill_value=0)
    expected["second.scalar"] = np.float32(3).reshape(())
    top.create_array("scalar", data=expected["second.scalar"], compressors=None)
    top.create_array("bz2", shape=(4,), chunks=(4,), dtype="float32", compressors=BZ2())[...] = 1
    packed("second", folder / "second")

    from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

    top = zarr.open_group(folder / "third", mode="w", zarr_format=3)
    shard = {"chunk_shape": (2, 2), "codecs": [BytesCodec(), ZstdCodec()]}
    cases = {
        "zstd": {"compressors": [ZstdCodec()]}, "gzip": {"compressors": [GzipCodec(), Crc32cCodec()]},
        "checked": {"compressors": [Crc32cCodec()], "serializer": BytesCodec(endian="big")},
        "turned": {"compressors": [], "filters": [TransposeCodec(order=(1, 0))]},
        "v2keys": {"compressors": [], "chunk_key_encoding": {"name": "v2", "separator": "."}},
        "sharded": {"compressors": [], "serializer": ShardingCodec(**shard)},
        "start": {"compressors": [], "serializer": ShardingCodec(**shard, index_location="start")},
        "bare": {
            "compressors": [],
            "serializer": ShardingCodec(chunk_shape=(2, 4), codecs=[BytesCodec()], index_codecs=[BytesCodec()]),
        },
    }  # fmt: skip
    for name, options in cases.items():
        expected[f"third.b.{name}"] = whole(7, 10)
        top.create_array(f"b/{name}", shape=(7, 10), chunks=(4, 4), dtype="float32", **options)[...] = expected[
            f"third.b.{name}"
        ]
    expected["third.cube"] = whole(3, 4, 5, dtype="int16")
    turned = [TransposeCodec(order=(1, 2, 0)), TransposeCodec(order=(0, 2, 1))]
    cube = top.create_array("cube", shape=(3, 4, 5), chunks=(2, 3, 2), dtype="int16", filters=turned, compressors=[])
    cube[...] = expected["third.cube"]
    expected["third.hole"] = np.full((8, 8), 1.5, "float32")
    expected["third.hole"][:2, :2] = 1
    inner = [BytesCodec(), ZstdCodec()]
    hole = top.create_array(
        "hole", shape=(8, 8), chunks=(4, 4), dtype="float32", fill_value=1.5, compressors=[],
        serializer=ShardingCodec(chunk_shape=(2, 2), codecs=inner),
    )  # fmt: skip
    hole[:2, :2] = 1
    for driver, group in (("zarr3", "third"), ("zarr", "second")):
        expected[f"{group}.half"] = whole(5, 3)
        store = {"driver": "file", "path": f"{folder / group}/half/"}
        array = ts.open(
            {"driver": driver, "kvstore": store}, create=True, dtype=ts.bfloat16, shape=[5, 3],
            chunk_layout=ts.ChunkLayout(chunk_shape=[2, 2]),
        ).result()  # fmt: skip
        array[...] = expected[f"{group}.half"].astype(ts.bfloat16.numpy_dtype)
    packed("second", folder / "second")
    packed("third", folder / "third")
    return expected


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    try:
        held = arrays(folder)
        held |= {f"tree.{name}": value for name, value in databases(folder).items()}
        orbax(folder)
    finally:
        shutil.rmtree(folder)
    dense, layers = PARAMS["Dense_0"], PARAMS["layers"]
    held |= {"params.Dense_0.weight": dense["kernel"].T, "params.Dense_0.bias": dense["bias"]}
    held |= {f"params.layers.{number}.w": layer["w"] for number, layer in enumerate(layers)}
    held |= {"params.embed.weight": PARAMS["embed"]["embedding"]}
    held |= {"grid.rows": dense["kernel"], "grid.both": dense["kernel"], "grid.columns": PARAMS["embed"]["embedding"]}
    np.savez_compressed(HERE / "expected.npz", **held)
    sys.stdout.write(f"{len(held)} arrays\n")
