"""Writes quantised MiniLM by the libraries that quantise: llama.cpp's, bitsandbytes, GPTQModel, AutoAWQ, and others.

A writer raises ``ImportError`` or ``FileNotFoundError`` where its library is not there. Where a library only packs
(GPTQ, AWQ, compressed-tensors), numbers are rounded to the nearest with a scale for each group of inputs, which those
layouts hold as well as better choices.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import math
import sys
from functools import cache
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import save_file

from benchmarks.containers.plain import State, write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP = 128
FALLBACK = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip
"""What llama.cpp takes for rows that are not made of whole blocks (llama-quant.cpp); IQ4_NL for the others."""


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    """Whether the weight is that of a linear layer, which the libraries for Hugging Face models quantise."""
    return name.endswith(".weight") and tensor.ndim == 2 and "embeddings" not in name


# --- GGUF -----------------------------------------------------------------------------------------------------------


@cache
def ggml() -> ctypes.CDLL:
    """ggml's base library, which ``pywhispercpp`` brings along. Raises ``ImportError`` without that."""
    try:
        files = metadata.files("pywhispercpp") or []
    except metadata.PackageNotFoundError as error:
        raise ImportError("pywhispercpp is not installed") from error
    path = next((file for file in files if "libggml-base-" in file.name), None)
    if path is None:
        raise ImportError("pywhispercpp has no libggml-base")
    library = ctypes.CDLL(str(path.locate()))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library


def by_ggml(values: Any, kind: GGMLQuantizationType) -> Any:
    """The blocks of a matrix as ggml quantises it: (rows, bytes of a row) uint8."""
    library = ggml()
    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    values = np.ascontiguousarray(values, np.float32)
    packed = np.zeros((rows, columns // block * size), np.uint8)
    # The types of about two bits want to know which inputs matter; here all do.
    importance = np.ones(columns, np.float32) if library.ggml_quantize_requires_imatrix(int(kind)) else None
    address = None if importance is None else importance.ctypes.data
    written = library.ggml_quantize_chunk(int(kind), values.ctypes.data, packed.ctypes.data, 0, rows, columns, address)
    if written != packed.nbytes:
        raise ValueError(f"{written} bytes were written, not {packed.nbytes}")
    return packed


def gguf_of(kind: str, encode: Callable[[Any, GGMLQuantizationType], Any]) -> Callable[[State, Path], Path]:
    """A writer of GGUF whose matrices are of ``kind``, as far as their rows are made of its blocks."""

    def write(state: State, folder: Path) -> Path:
        def stored(_: str, values: Any) -> tuple[Any, GGMLQuantizationType | None]:
            if values.ndim != 2:
                return values, None
            chosen = GGMLQuantizationType[kind]
            if values.shape[1] % GGML_QUANT_SIZES[chosen][0]:
                chosen = GGMLQuantizationType[FALLBACK.get(kind, "IQ4_NL")]
            done = encode if chosen.name == kind or encode is by_ggml else gguf.quants.quantize
            return done(values, chosen), chosen

        return write_gguf(state, folder / f"{kind}.gguf", stored)

    return write


# --- layouts inside safetensors -------------------------------------------------------------------------------------


def _written(state: State, folder: Path, config: str, quantise: Callable[[str, torch.Tensor], State]) -> Path:
    """A folder with a config, linear layers as ``quantise`` makes them and everything else in half precision."""
    stored: State = {}
    for name, tensor in state.items():
        if is_linear(name, tensor):
            module = name.removesuffix("weight")
            stored |= {f"{module}{leaf}": one.contiguous().clone() for leaf, one in quantise(name, tensor).items()}
        else:
            stored[name] = tensor.half()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config)
    return folder


def grouped(tensor: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of each row and group of ``GROUP`` inputs: (rows, groups)."""
    groups = tensor.reshape(len(tensor), -1, GROUP)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float().clamp(min=1e-7)
    return scales, torch.round(-low / scales).clamp(0, 2**bits - 1)


def bitsandbytes_4bit(kind: str, *, nested: bool) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        from bitsandbytes import functional

        def quantise(_: str, tensor: torch.Tensor) -> State:
            packed, settings = functional.quantize_4bit(
                tensor, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=torch.uint8
            )
            return {"weight": packed} | {f"weight.{key}": one for key, one in settings.as_dict(packed=True).items()}

        return _written(state, folder, "{}", quantise)

    return write


def bitsandbytes_8bit(state: State, folder: Path) -> Path:
    from bitsandbytes import functional

    def quantise(_: str, tensor: torch.Tensor) -> State:
        codes, stats, _ = functional.int8_vectorwise_quant(tensor.half())
        return {"weight": codes, "SCB": stats, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    return _written(state, folder, "{}", quantise)


def hqq(bits: int) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        def quantise(_: str, tensor: torch.Tensor) -> State:
            linear = torch.nn.Linear(*tensor.shape[::-1], bias=False)
            linear.weight.data = tensor.clone()
            config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
            layer = HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
            layer.encoded_state_dict = True
            return dict(layer.state_dict())

        return _written(state, folder, "{}", quantise)

    return write


def compressed_tensors(form: str, bits: int, number: str = "int") -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        def quantise(_: str, tensor: torch.Tensor) -> State:
            if form == "pack-quantized":
                scale = tensor.reshape(len(tensor), -1, GROUP).abs().amax(2) / (2 ** (bits - 1) - 1)
                args = QuantizationArgs(num_bits=bits, strategy="group", group_size=GROUP)
            else:
                scale = tensor.abs().amax(1, keepdim=True) / (448 if number == "float" else 127)
                args = QuantizationArgs(num_bits=bits, type=number, strategy="channel")
            compressor = BaseCompressor.get_value_from_registry(form)
            scheme = QuantizationScheme(targets=["Linear"], weights=args)
            return dict(compressor.compress({"weight": tensor.clone(), "weight_scale": scale}, scheme))

        return _written(state, folder, "{}", quantise)

    return write


def gptq(bits: int, sources: Path) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        pack = gptq_packer(sources)

        def quantise(_: str, tensor: torch.Tensor) -> State:
            scales, zeros = grouped(tensor, bits)
            return pack(tensor, scales, zeros, torch.arange(tensor.shape[1], dtype=torch.int32) // GROUP, bits)

        config = (
            f'{{"quantization_config": {{"quant_method": "gptq", "bits": {bits}, "checkpoint_format": "gptq_v2"}}}}'
        )
        return _written(state, folder, config, quantise)

    return write


@cache
def gptq_packer(sources: Path) -> Callable[..., State]:
    """GPTQModel's packing, taken out of its unpacked sources. Raises ``FileNotFoundError``."""
    path = sources / "gptqmodel-7.7.0/gptqmodel/nn_modules/qlinear/__init__.py"
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "pack_original"]
    code = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), *found], [])
    ast.fix_missing_locations(code)
    scope: dict[str, Any] = {
        "t": torch, "np": np, "nn": torch.nn, "math": math, "_ConvNd": torch.nn.modules.conv._ConvNd,
        "transformers": SimpleNamespace(pytorch_utils=SimpleNamespace(Conv1D=type(None))),
        "THREADPOOLCTL": SimpleNamespace(threadpool_limits=lambda _: contextlib.nullcontext()),
    }  # fmt: skip
    exec(compile(code, str(path), "exec"), scope)

    def pack(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor, bits: int) -> State:
        rows, columns = weight.shape
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = weight
        held = SimpleNamespace(
            bits=bits, maxq=2**bits - 1, planar=False, pack_factor=32 // bits, pack_dtype=torch.int32,
            pack_dtype_bits=32, pack_np_math_dtype=np.uint32, pack_np_dtype=np.int32, in_features=columns,
            g_idx=g_idx, _init_wf_unsqueeze_buffers=lambda: None, bias=None,
        )  # fmt: skip
        held.register_buffer = lambda key, value: setattr(held, key, value)
        scope["pack_original"](held, linear, scales, zeros, g_idx)
        return {"qweight": held.qweight, "qzeros": held.qzeros, "scales": held.scales.half(), "g_idx": g_idx}

    return pack


AWQ_FORMS = {"gemm": "WQLinear_GEMM", "gemv": "WQLinear_GEMV", "gemv_fast": "WQLinear_GEMVFast"}


def awq(form: str, sources: Path) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        layer = getattr(awq_module(form, sources), AWQ_FORMS[form])

        def quantise(_: str, tensor: torch.Tensor) -> State:
            scales, zeros = grouped(tensor, 4)
            linear = torch.nn.Linear(*tensor.shape[::-1], bias=False)
            linear.weight.data = tensor.clone()
            if form == "gemm":
                scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
            packed = layer.from_linear(linear, 4, GROUP, scales=scales, zeros=zeros).state_dict()
            return {leaf: one for leaf, one in packed.items() if leaf != "bias"}

        version = {"gemm": "gemm", "gemv": "gemv", "gemv_fast": "gemv_fast"}[form]
        config = f'{{"quantization_config": {{"quant_method": "awq", "version": "{version}", "group_size": {GROUP}}}}}'
        return _written(state, folder, config, quantise)

    return write


@cache
def awq_module(form: str, sources: Path) -> ModuleType:
    """A module of AutoAWQ's linear layers, without the rest of the package. Raises ``FileNotFoundError``."""
    root = sources / "autoawq-0.2.9/awq"
    if not root.is_dir():
        raise FileNotFoundError(root)
    for package in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        # Packages that run nothing of their own when they are imported: theirs want transformers.
        stub = ModuleType(package)
        stub.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
        sys.modules.setdefault(package, stub)
    for name, held in {
        "awq.utils.module": {"try_import": lambda _: (None, "")},
        "awq.utils.utils": {"get_best_device": lambda: "cpu"},
    }.items():
        stub = ModuleType(name)
        vars(stub).update(held)
        sys.modules.setdefault(name, stub)
    return importlib.import_module(f"awq.modules.linear.{form}")


def writers(sources: Path) -> dict[str, Callable[[State, Path], Path]]:
    """Quantised forms by the title of their row; ``sources`` has GPTQModel's and AutoAWQ's, unpacked."""
    by_package = ("Q8_0", "Q4_1", "MXFP4", "TQ2_0")
    # All that ggml quantises and the gguf package dequantises, from the finest to the coarsest.
    by_library = (
        "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "Q3_K",
        "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
    )  # fmt: skip
    return (
        {f"GGUF {kind}, ggml": gguf_of(kind, by_ggml) for kind in by_library}
        | {f"GGUF {kind}, gguf package": gguf_of(kind, gguf.quants.quantize) for kind in by_package}
        | {
            f"bitsandbytes {kind.upper()}{', nested scales' if nested else ''}": bitsandbytes_4bit(kind, nested=nested)
            for kind in ("nf4", "fp4")
            for nested in (False, True)
        }
        | {"bitsandbytes LLM.int8()": bitsandbytes_8bit}
        | {f"GPTQ, {bits} bits": gptq(bits, sources) for bits in (8, 4, 2)}
        | {f"AWQ, {form}": awq(form, sources) for form in AWQ_FORMS}
        | {
            "compressed-tensors, 8 bits packed": compressed_tensors("pack-quantized", 8),
            "compressed-tensors, 4 bits packed": compressed_tensors("pack-quantized", 4),
            "compressed-tensors, int8": compressed_tensors("int-quantized", 8),
            "compressed-tensors, FP8": compressed_tensors("float-quantized", 8, "float"),
        }
        | {"HQQ, 4 bits": hqq(4)}
    )
