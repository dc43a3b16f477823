"""The codes of findings about a checkpoint, a closed set with meanings, which the page of formats lists."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class FindingCode(StrEnum):
    """What a report must mention about a checkpoint.

    ``meaning`` says it in a sentence; ``incomplete`` is "yes", or says when, where the finding means that something is
    known not to have been measured.
    """

    meaning: str
    incomplete: str

    def __new__(cls, value: str, meaning: str, incomplete: str = "") -> Self:
        """A member with what the page of formats says of it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning, member.incomplete = meaning, incomplete
        return member

    NO_TENSORS = "no-tensors", "the file is sound and holds not one tensor"
    ABSENT_SHARD = (
        "absent-shard",
        "a shard that the index, or the numbers in the file names, promise is not there, or a chunk of an array",
        "yes",
    )
    ABSENT_TENSOR = "absent-tensor", "a tensor of the index, or of a tree's list, is nowhere in what was read", "yes"
    MISPLACED_TENSOR = "misplaced-tensor", "a tensor is in another shard than the index says; it was read"
    UNLISTED_TENSOR = "unlisted-tensor", "a tensor is not in the index; it was read"
    UNLISTED_FILE = "unlisted-file", "a checkpoint file of the folder is not in the index; it was not read"
    UNREADABLE_FILE = "unreadable-file", "one of several files is damaged", "yes"
    DUPLICATE_TENSOR = (
        "duplicate-tensor",
        "a name in several files; the place in the index was read, without an index the first",
        "without an index",
    )
    OTHER_FORMAT = "other-format", "files of a second format in the folder were not read"
    UNREAD_TENSOR = "unread-tensor", "a tensor that is there and cannot be read; the message says why", "yes"
    QUANTISED_LAYOUT = (
        "quantised-layout",
        "tensors that look like a quantised module's and make no sense as one; read as stored",
    )
    ROPE_ORDER = (
        "rope-order",
        "queries and keys of a GGUF file keep llama.cpp's order of rows, as no fitting number of heads is claimed",
    )
    TIED_TENSORS = "tied-tensors", "tensors that are one storage under several names; all are listed"
    TRUNCATED = "truncated", "the file ends before its tensors do; those that are wholly in it were read", "yes"
    BFLOAT16_ASSUMED = (
        "bfloat16-assumed",
        "an array of numpy whose elements are two bytes without a type was read as bfloat16, which is what numpy makes "
        "of it",
    )
    COMPONENT = (
        "component",
        "a composite checkpoint: what the folder of a component holds; its tensors were read, under names that begin "
        "with it",
    )
    UNREAD_FOLDER = "unread-folder", "an archive holds further folders of weights below that of the checkpoint"
    ARCHIVE_LINK = (
        "archive-link",
        "links in an archive that lead out of it or nowhere, or of a ZIP archive at all, were not followed",
    )
    ODD_MEMBER_NAME = (
        "odd-member-name",
        "members of an archive whose names lead upwards, to the root, or are taken, were not read",
    )
    SPARSE_MEMBER = "sparse-member", "sparse members of a tar archive were not read", "yes"
    ADAPTER = (
        "adapter",
        "factors of a low-rank adapter were multiplied: their products, named as the base's tensors, are what it adds",
    )
    ADAPTER_FACTORS = (
        "adapter-factors",
        "factors that do not fit together, or whose product is too large, were left as they are",
    )
    ADAPTER_SCALE = "adapter-scale", "nothing that is understood says what a product is multiplied by"
    ADAPTER_MAGNITUDES = (
        "adapter-magnitudes",
        "DoRA's magnitudes are tensors of their own; the products are without them",
    )
    UNLISTED_STORAGE = "unlisted-storage", "an old PyTorch file names storages and does not list them"
    OPTIMISER_STATE = "optimiser-state", "the state of an optimiser, told by its form, was set aside"
    UNKNOWN_GLOBAL = (
        "unknown-global",
        "the pickle names something outside the closed list; it was not imported, let alone called",
    )
    GRAPH_CONSTANTS = (
        "graph-constants",
        "scalars, shapes and indices of an ONNX graph, which are no weights, were set aside",
    )
    OTHER_GRAPHS = "other-graphs", "graphs of an ONNX file that describe training were not read"
    OTHER_PICKLES = "other-pickles", "the archive holds more pickles than the one that is read"
    CRC_MISMATCH = "crc-mismatch", "the checksum of an entry of the archive is wrong; read as PyTorch would"
    ZIP_NAMES = "zip-names", "names in the archive contradict one another; read as PyTorch would"
    ZIP_ENCRYPTED = "zip-encrypted", "the archive says that an entry is encrypted; read as PyTorch would"
    UNUSED_BYTES = "unused-bytes", "bytes between tensors belong to none of them"
    TRAILING_BYTES = "trailing-bytes", "bytes follow the end of the last tensor, or of a pickle"
    METADATA_CLIPPED = "metadata-clipped", "claims of the file about itself were shortened or left out"
