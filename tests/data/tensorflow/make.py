"""Makes the files of this folder: run by hand with tensorflow-cpu 2.21.0, keras 3.15.1, tf_keras 2.21.0 and
tensorflowjs 4.22.0.

``weights.npz`` has the values, by ``layer/variable``, as Keras has them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import types
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
import tf_keras

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(13)


def network(k: types.ModuleType) -> object:
    image = k.Input((9, 9, 3), name="image")
    x = k.layers.Conv2D(8, 3, name="conv2d")(image)
    x = k.layers.DepthwiseConv2D(3, depth_multiplier=1, name="depthwise_conv2d")(x)
    x = k.layers.BatchNormalization(name="batch_normalization")(x)
    x = k.layers.Conv2DTranspose(4, 2, name="conv2d_transpose")(x)
    x = k.layers.Flatten(name="flatten")(x)
    x = k.layers.Dense(16, activation="relu", name="dense")(x)
    return k.Model(image, k.layers.Dense(5, name="dense_1")(x), name="network")


def sequence(k: types.ModuleType) -> object:
    tokens = k.Input((6,), dtype="int32", name="tokens")
    x = k.layers.Embedding(20, 8, name="embedding")(tokens)
    x = k.layers.Conv1D(8, 3, padding="same", name="conv1d")(x)
    x = k.layers.LSTM(7, return_sequences=True, name="lstm")(x)
    x = k.layers.GRU(5, name="gru")(x)
    return k.Model(tokens, k.layers.Dense(3, name="dense")(x), name="sequence")


def fill(model: object) -> None:
    model.set_weights([RANDOM.standard_normal(w.shape).astype(np.float32) for w in model.get_weights()])


def values(model: object, prefix: str) -> dict[str, np.ndarray]:
    found = {}
    for layer in model.layers:
        for variable in layer.weights:
            name = (getattr(variable, "path", "") or variable.name).split("/")[-1].split(":")[0]
            found[f"{prefix}/{layer.name}/{name}"] = np.asarray(variable)
    return found


def tfjs_writer() -> types.ModuleType:
    """tensorflowjs.write_weights alone; the package as a whole imports much else."""
    (place,) = importlib.util.find_spec("tensorflowjs").submodule_search_locations
    package = types.ModuleType("tensorflowjs")
    package.__path__ = [place]
    sys.modules["tensorflowjs"] = package
    return importlib.import_module("tensorflowjs.write_weights")


def main() -> None:
    everything = {}
    for build, name in ((network, "network"), (sequence, "sequence")):
        model = build(keras)
        fill(model)
        everything |= values(model, name)
        model.compile("adam", "mse")
        model.save(HERE / f"{name}.keras")
        model.save(HERE / f"{name}.h5")
        model.save_weights(HERE / f"{name}.weights.h5")
        legacy = build(tf_keras)
        legacy.set_weights(model.get_weights())
        legacy.save(HERE / f"{name}_tf_keras.h5")
        legacy.save_weights(HERE / f"{name}_tf_keras_weights.h5")
        legacy.save_weights(str(HERE / f"{name}_checkpoint" / "model"))
        if name == "sequence":
            continue
        folder = HERE / f"{name}_saved_model"
        shutil.rmtree(folder, ignore_errors=True)
        model.export(folder)
        (folder / "fingerprint.pb").unlink(missing_ok=True)
        tflite(folder, name)
        tfjs(everything, HERE / f"{name}_tfjs")
    np.savez(HERE / "weights.npz", **everything)


def tflite(folder: Path, name: str) -> None:
    def convert(file: str, **options: object) -> None:
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
        for key, value in options.items():
            if key == "types":
                converter.target_spec.supported_types = value
            else:
                setattr(converter, key, value)
        (HERE / f"{name}_{file}.tflite").write_bytes(converter.convert())

    def samples() -> object:
        for _ in range(8):
            yield [RANDOM.standard_normal((1, 9, 9, 3)).astype(np.float32)]

    best = [tf.lite.Optimize.DEFAULT]
    convert("float32")
    convert("float16", optimizations=best, types=[tf.float16])
    convert("dynamic", optimizations=best)
    convert("int8", optimizations=best, representative_dataset=samples)


def tfjs(found: dict[str, np.ndarray], folder: Path) -> None:
    writer = tfjs_writer()
    group = [[{"name": name, "data": data} for name, data in found.items()]]
    topology = {"modelTopology": {"keras_version": "2"}, "format": "layers-model"}
    for kind, quantisation in (
        ("plain", None),
        ("uint8", {"uint8": "*"}),
        ("uint16", {"uint16": "*"}),
        ("float16", {"float16": "*"}),
    ):
        place = folder / kind
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        manifest = writer.write_weights(
            group, str(place), shard_size_bytes=3000, write_manifest=False, quantization_dtype_map=quantisation
        )
        import json

        (place / "model.json").write_text(json.dumps({**topology, "weightsManifest": manifest}))


if __name__ == "__main__":
    main()
