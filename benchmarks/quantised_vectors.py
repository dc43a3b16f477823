"""Makes the small files of ``tests/data/quantised`` with the libraries that produce such layouts.

Each file holds a quantised module as its library writes it, and ``expected``: what the library dequantises it to (in
float32). The libraries are no dependencies of this project: install them somewhere else and run::

    PYTHONPATH=THERE python -m benchmarks.quantised_vectors --sources UNPACKED tests/data/quantised

``UNPACKED`` is a folder with the unpacked source distributions of gptqmodel 7.7.0 and autoawq 0.2.9, of which only the
functions that pack and unpack are used. The others: bitsandbytes 0.50.2, compressed-tensors 0.20.0, hqq 0.2.8.post1,
mlx 0.32.4 (mlx-cpu).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.containers.quantised import awq_module

ROWS, COLUMNS = 32, 128


def weights(seed: int) -> torch.Tensor:
    """Trained-looking weights: float32, (ROWS, COLUMNS)."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.02


def save(folder: Path, name: str, tensors: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    """Writes one vector; names get the prefix of a module."""
    stored = {f"model.layers.0.mlp.up_proj.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(stored | {"expected": expected.float().contiguous()}, folder / f"{name}.safetensors")


def bitsandbytes(folder: Path) -> None:
    """NF4 and FP4, with plain and nested scales, and LLM.int8()."""
    from bitsandbytes import functional

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            weight = weights(1)
            packed, state = functional.quantize_4bit(
                weight, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=torch.uint8
            )
            tensors = {"weight": packed} | {f"weight.{key}": v for key, v in state.as_dict(packed=True).items()}
            save(folder, f"bnb-{kind}{'-nested' if nested else ''}", tensors, functional.dequantize_4bit(packed, state))
    weight = weights(2).half()
    codes, stats, _ = functional.int8_vectorwise_quant(weight)
    tensors = {"weight": codes, "SCB": stats, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    save(folder, "bnb-int8", tensors, functional.int8_vectorwise_dequant(codes, stats))


def compressed_tensors(folder: Path) -> None:
    """The formats of compressed-tensors, by its own compressors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def one(name: str, form: str, scale: torch.Tensor, zero: torch.Tensor | None = None, **args: Any) -> None:
        more = {key: args.pop(key) for key in ("weight_global_scale",) if key in args}
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        state = {"weight": weights(3), "weight_scale": scale, **more}
        if zero is not None:
            state["weight_zero_point"] = zero
        compressor = BaseCompressor.get_value_from_registry(form)
        packed = compressor.compress(state, scheme)
        save(folder, f"ct-{name}", packed, compressor.decompress(dict(packed), scheme)["weight"])

    weight = weights(3)
    grouped = weight.reshape(ROWS, -1, 32).abs().amax(2)
    for bits in (4, 8):
        top = 2 ** (bits - 1) - 1
        one(f"int{bits}-group", "pack-quantized", grouped / top, num_bits=bits, strategy="group", group_size=32)
    zero = torch.randint(-8, 8, grouped.shape, generator=torch.Generator().manual_seed(9)).to(torch.int8)
    asymmetric = {"symmetric": False, "strategy": "group", "group_size": 32}
    one("int4-asymmetric", "pack-quantized", grouped / 7, zero, num_bits=4, **asymmetric)
    one("int3-asymmetric", "pack-quantized", grouped / 3, (zero // 2).to(torch.int8), num_bits=3, **asymmetric)
    rows = weight.abs().amax(1, keepdim=True)
    one("int8", "int-quantized", rows / 127, num_bits=8, strategy="channel")
    one("fp8-channel", "float-quantized", rows / 448, num_bits=8, type="float", strategy="channel")
    one("fp8-tensor", "float-quantized", rows.max().reshape(1) / 448, num_bits=8, type="float", strategy="tensor")
    blocks = weight.reshape(ROWS // 16, 16, COLUMNS // 64, 64).abs().amax((1, 3))
    block = {"strategy": "block", "block_structure": [16, 64]}
    one("fp8-block", "float-quantized", blocks / 448, num_bits=8, type="float", **block)
    scale = weight.reshape(ROWS, -1, 16).abs().amax(2)
    whole = (6 * 448 / weight.abs().max()).reshape(1)
    fine = (scale / 6 * whole).to(torch.float8_e4m3fn).float()
    four = {"num_bits": 4, "type": "float"}
    args = {"strategy": "tensor_group", "group_size": 16, "weight_global_scale": whole}
    one("nvfp4", "nvfp4-pack-quantized", fine, **four, **args)
    powers = torch.exp2(torch.floor(torch.log2(grouped)) - 2)
    one("mxfp4", "mxfp4-pack-quantized", powers, **four, strategy="group", group_size=32)


def hqq(folder: Path) -> None:
    """HQQ linear modules as their ``state_dict`` encodes them for safetensors."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, axis in ((8, 1), (4, 1), (4, 0), (2, 1), (1, 1)):
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        linear.weight.data = weights(4)
        config = BaseQuantizeConfig(nbits=bits, group_size=32, axis=axis)
        layer = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
        layer.encoded_state_dict = True
        save(folder, f"hqq-{bits}-axis{axis}", layer.state_dict(), layer.dequantize())


def mlx(folder: Path) -> None:
    """MLX's affine and MXFP4 modes."""
    import mlx.core as mx

    def torch_of(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    weight = mx.array(weights(5).numpy())
    for bits in (2, 3, 4, 6, 8):
        parts = mx.quantize(weight, group_size=64, bits=bits)
        tensors = dict(zip(("weight", "scales", "biases"), map(torch_of, parts), strict=True))
        save(folder, f"mlx-{bits}", tensors, torch_of(mx.dequantize(*parts, group_size=64, bits=bits)))
    codes, scales = mx.quantize(weight, group_size=32, bits=4, mode="mxfp4")
    expected = mx.dequantize(codes, scales, group_size=32, bits=4, mode="mxfp4")
    tensors = {"weight": torch_of(codes), "scales": torch_of(scales)}
    save(folder, "mlx-mxfp4", tensors, torch_of(expected.astype(mx.float32)))


def gptq(folder: Path, sources: Path) -> None:
    """GPTQ by gptqmodel's packing and unpacking, which are of the second version of the format."""
    path = sources / "gptqmodel-7.7.0/gptqmodel/nn_modules/qlinear/__init__.py"
    tree = ast.parse(path.read_text())
    wanted = {"pack_original", "dequantize_weight", "_dequantize_from_codes"}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    code = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), *found], [])
    ast.fix_missing_locations(code)
    scope: dict[str, Any] = {
        "t": torch, "np": np, "nn": torch.nn, "math": math, "_ConvNd": torch.nn.modules.conv._ConvNd,
        "transformers": SimpleNamespace(pytorch_utils=SimpleNamespace(Conv1D=type(None))),
        "THREADPOOLCTL": SimpleNamespace(threadpool_limits=lambda _: contextlib.nullcontext()),
        "_torch_right_shift": torch.bitwise_right_shift, "_torch_left_shift": torch.bitwise_left_shift,
    }  # fmt: skip
    exec(compile(code, str(path), "exec"), scope)
    for bits, ordered in ((2, False), (3, False), (4, False), (4, True), (8, False)):
        weight, groups, top = weights(6), COLUMNS // 32, 2**bits - 1
        random = torch.Generator().manual_seed(bits)
        zeros = torch.randint(1, top + 1, (ROWS, groups), generator=random).float()
        scales = (weight.reshape(ROWS, groups, 32).abs().amax(2) / top * 2).half().float()
        g_idx = torch.arange(COLUMNS, dtype=torch.int32) // 32
        if ordered:
            g_idx = g_idx[torch.randperm(COLUMNS, generator=random)]
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        linear.weight.data = weight
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        if bits == 3:
            shifts = torch.tensor(
                [[0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0], [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31],
                 [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0]], dtype=torch.int32,
            ).reshape(1, 3, 12)  # fmt: skip
        held = SimpleNamespace(
            bits=bits, maxq=top, planar=False, pack_factor=32 // bits, pack_dtype=torch.int32, pack_dtype_bits=32,
            pack_np_math_dtype=np.uint32, pack_np_dtype=np.int32, dequant_dtype=torch.int32, in_features=COLUMNS,
            g_idx=g_idx, _init_wf_unsqueeze_buffers=lambda: None, bias=None,
            wf_unsqueeze_zero=shifts.unsqueeze(0), wf_unsqueeze_neg_one=shifts.unsqueeze(-1),
        )  # fmt: skip
        held.register_buffer = lambda key, value, held=held: setattr(held, key, value)
        held._dequantize_from_codes = lambda *args, held=held, **kw: scope["_dequantize_from_codes"](held, *args, **kw)
        scope["pack_original"](held, linear, scales, zeros, g_idx)
        held.scales = held.scales.float()
        expected = scope["dequantize_weight"](held).T
        tensors = {"qweight": held.qweight, "qzeros": held.qzeros, "scales": held.scales.half(), "g_idx": g_idx}
        save(folder, f"gptq-{bits}{'-ordered' if ordered else ''}", tensors, expected)


def awq(folder: Path, sources: Path) -> None:
    """AWQ: any words are a matrix; autoawq's ``dequantize_gemm`` says which."""
    path = sources / "autoawq-0.2.9/awq/utils/packing_utils.py"
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    random = torch.Generator().manual_seed(7)
    words = [torch.randint(-(2**31), 2**31 - 1, (size, ROWS // 8), generator=random).int() for size in (COLUMNS, 4)]
    scales = (torch.rand(4, ROWS, generator=random) * 0.01).half()
    expected = module.dequantize_gemm(*words, scales.float(), 4, COLUMNS // 4).T
    save(folder, "awq", {"qweight": words[0], "qzeros": words[1], "scales": scales}, expected)


def awq_vectors(folder: Path, sources: Path) -> None:
    """AWQ for products with vectors, and Marlin, by autoawq's layers: they must find the numbers that were drawn."""
    size, groups, zero = 32, COLUMNS // 32, 8
    random = torch.Generator().manual_seed(8)
    rows = 64  # what Marlin shuffles at once
    numbers = torch.randint(0, 16, (rows, groups, size), generator=random).float()
    zeros = torch.randint(0, 16, (rows, groups), generator=random).float()
    scales = (torch.rand(rows, groups, generator=random) * 0.01 + 0.001).half()
    for name, form, layer in (("gemv", "gemv", "WQLinear_GEMV"), ("gemv-fast", "gemv_fast", "WQLinear_GEMVFast")):
        linear = torch.nn.Linear(COLUMNS, rows, bias=False)
        linear.weight.data = ((numbers - zeros[..., None]) * scales[..., None].float()).reshape(rows, COLUMNS)
        made = getattr(awq_module(form, sources), layer).from_linear(linear, 4, size, scales=scales, zeros=zeros)
        added = (numbers - zeros[..., None]) * scales[..., None].float()
        if form == "gemv_fast":
            # It keeps -scale * zero in half precision, and adds it.
            shift = -(scales.float() * zeros).half().float()
            added = numbers * scales[..., None].float() + shift[..., None]
        save(folder, f"awq-{name}", dict(made.state_dict()), added.reshape(rows, COLUMNS))
    for name, width in (("marlin", size), ("marlin-one-scale", COLUMNS)):
        scale = scales[:, : COLUMNS // width]
        weight = ((numbers.reshape(rows, -1, width) - zero) * scale[..., None].float()).reshape(rows, COLUMNS)
        linear = torch.nn.Linear(COLUMNS, rows, bias=False)
        linear.weight.data = weight
        layer = awq_module("marlin", sources).WQLinear_Marlin
        made = layer.from_linear(linear, 4, width, scales=scale.float())
        save(folder, name, {"qweight": made.qweight, "scales": made.scales}, weight)


def main() -> None:
    """Writes all vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sources", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for make in (bitsandbytes, compressed_tensors, hqq, mlx):
        make(arguments.folder)
    for make_from in (gptq, awq, awq_vectors):
        make_from(arguments.folder, arguments.sources)


if __name__ == "__main__":
    main()
