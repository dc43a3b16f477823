"""A corpus of hostile checkpoints, made by code: for the tests of the readers and the commands, and for benchmarks.

``for case in CASES: path = case.build(folder)`` writes the case into an empty folder and gives the path to open. A
payload that was executed would leave a file named ``CANARY`` in that folder.
"""

from __future__ import annotations

from tests.hostile.case import CANARY, Case, Expect
from tests.hostile.container_cases import CONTAINER_CASES
from tests.hostile.coreml_cases import COREML_CASES
from tests.hostile.folder_cases import FOLDER_CASES
from tests.hostile.legacy_cases import LEGACY_CASES
from tests.hostile.numpy_cases import NUMPY_CASES
from tests.hostile.onnx_cases import ONNX_CASES
from tests.hostile.orbax_cases import ORBAX_CASES
from tests.hostile.pickle_cases import PICKLE_CASES
from tests.hostile.safetensors_cases import SAFETENSORS_CASES
from tests.hostile.zip_cases import ZIP_CASES

CASES: tuple[Case, ...] = (
    *SAFETENSORS_CASES,
    *FOLDER_CASES,
    *ONNX_CASES,
    *PICKLE_CASES,
    *ZIP_CASES,
    *LEGACY_CASES,
    *NUMPY_CASES,
    *CONTAINER_CASES,
    *COREML_CASES,
    *ORBAX_CASES,
)

__all__ = ["CANARY", "CASES", "Case", "Expect"]
