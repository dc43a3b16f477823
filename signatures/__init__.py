"""Identify weights: signature files, registry, index, search, evidence, verdict, report.

The verbs::

    with signatures.Registry.open("registry") as registry:
        registry.register(signatures.sign(mine), name="org/model")
        report = signatures.scan_path(registry, "suspect.safetensors")

Everything is loaded when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from signatures.options import ScanOptions as ScanOptions
    from signatures.registry import Registry as Registry
    from signatures.report import Report as Report
    from signatures.scan import compare_paths as compare_paths
    from signatures.scan import scan_path as scan_path
    from signatures.signature import Signature as Signature
    from signatures.signature import read_signature as read_signature
    from signatures.signature import sign as sign
    from signatures.signature import write_signature as write_signature

_WHERE = {
    "Registry": "signatures.registry",
    "Report": "signatures.report",
    "ScanOptions": "signatures.options",
    "Signature": "signatures.signature",
    "compare_deep": "signatures.deep",
    "compare_paths": "signatures.scan",
    "read_signature": "signatures.signature",
    "scan_path": "signatures.scan",
    "sign": "signatures.signature",
    "write_signature": "signatures.signature",
}

__all__ = [
    "Registry",
    "Report",
    "ScanOptions",
    "Signature",
    "compare_deep",
    "compare_paths",
    "read_signature",
    "scan_path",
    "sign",
    "write_signature",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'signatures' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
