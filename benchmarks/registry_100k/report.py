"""The page of the benchmark of a large registry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from benchmarks.machine import described

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILY: Final = 2000
OF_FAMILY: Final = f"scan one of a family of {FAMILY:,}"
ONE_BY_ONE: Final = "read and compare with one model"
UNKNOWN_LARGE: Final = "scan an unknown model of 8B parameters"
LIMITS: Final = {
    "register one more": 1.0,
    "scan a registered model": 2.0,
    "scan an unknown model of 16 matrices": 2.0,
    UNKNOWN_LARGE: 2.0,
    OF_FAMILY: 2.0,
    "fp scan": 2.0,
    "fp register": 1.0,
}


def right(result: Mapping[str, Any]) -> bool:
    """Whether the medians are within the limits."""
    return all(result["seconds"][name]["median"] < limit for name, limit in LIMITS.items())


def to_markdown(result: Mapping[str, Any]) -> str:
    filled, sizes, digests, index = result["filled"], result["bytes"], result["digests"], result["index"]
    one_by_one, scan = (result["seconds"][name]["median"] for name in (ONE_BY_ONE, "scan a registered model"))
    kinds = "; ".join(f"{name}: {kind}" for name, kind in index["kinds"].items())
    lines = [
        f"# A registry of {result['models']:,} models",
        "",
        f"{described()}; {datetime.now(UTC).date().isoformat()}; `make bench-registry`.",
        "",
        f"Synthetic models of six tensors, five of them matrices, random and unrelated; a signature has "
        f"{filled['bytes of a signature'] / 1000:.0f} kB. Registered by the thousand (`Registry.together`), "
        f"{filled['seconds'] / 60:.0f} minutes in all, the making of the signatures included. The index held "
        f"{index['vectors']:,} vectors in {index['segments']} segments ({kinds}).",
        "",
        "| what | median seconds | longest | of the processors | limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in result["seconds"].items():
        limit = f"{LIMITS[name]:.0f}" if name in LIMITS else ""
        work = one["of the processors"]
        lines.append(f"| {name} | {one['median']:.2f} | {one['longest']:.2f} | {work:.2f} | {limit} |")
    lines += [
        "",
        "The first rows are the registry's own work beyond fingerprinting, the opening of the registry included; what "
        "begins with `fp` is a command with the start of its process, the suspect being a signature. "
        f"The family has all tensors but one in common: {FAMILY:,} models are equally near by each of these. "
        "The last scan of 8B parameters compares with 20 relatives of that size in full, which is what it takes, in a "
        "registry of any size; the one of an unknown model compares with 20 small ones.",
        "",
        f"Without an index a scan would read and compare with every model: {result['models']:,} times "
        f"{1000 * one_by_one:.1f} ms are {result['models'] * one_by_one:,.0f} s, "
        f"{result['models'] * one_by_one / scan:,.0f} times as long as the scan of a registered model.",
        "",
        "| on disk | GB |",
        "| --- | --- |",
        *(f"| {name} | {size / 1e9:.2f} |" for name, size in sizes.items()),
        "",
        "## Digests alone",
        "",
        f"A database of {digests['models']:,} models of 200 tensors, one digest each: {digests['digests']:,} digests, "
        f"{digests['bytes'] / 1e9:.2f} GB, put straight into the table in {digests['seconds'] / 60:.0f} minutes. "
        f"Looking up the {digests['digests asked']} digests of a suspect, half of them registered, took "
        f"{1000 * digests['median seconds']:.0f} ms (longest {1000 * digests['longest']:.0f}) in a database opened "
        f"anew; adding the digests of one more model {1000 * digests['insert one']:.0f} ms. A registered model of "
        "32-bit floats has up to five digests a tensor, as four casts are looked up too.",
    ]
    return "\n".join(lines) + "\n"
