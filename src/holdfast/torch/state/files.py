"""One rank's file of tensors: safetensors, with the places of the shards as `torch.distributed.checkpoint` notes them.

Sources: https://huggingface.co/docs/safetensors for the format; `torch.distributed.checkpoint.hf_storage` for the key
`DCP_SHARDING_INFO` in its metadata, which tells where in the whole tensor each piece belongs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from holdfast.errors import StateError

SUFFIX = ".safetensors"
# The first tensor begins at a multiple of it, and so each begins at one of its own elements' size.
_ALIGNMENT_BYTES = 64

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A tensor, or a rank's part of it.

    Attributes:
        offsets: Where in the whole tensor it begins, one number a dimension.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """Where everything lies in a file.

    Attributes:
        header: What the file begins with.
        places: Each piece and its first byte, in the order of the file.
        size_bytes: Of the whole file.
    """

    header: bytes
    places: Sequence[tuple[Piece, int]]
    size_bytes: int


def is_sharded_tensor(tensor: object) -> bool:
    """Whether it is a `ShardedTensor` of the old FSDP, which answers few questions about itself."""
    return hasattr(type(tensor), "local_shards")


def check_dtype(tensor: torch.Tensor, where: str) -> None:
    """Refuses what the format has no name for.

    Raises:
        StateError: The tensor is quantized, sparse, complex128, or the like.
    """
    if is_sharded_tensor(tensor):
        return
    if tensor.is_meta:
        raise StateError(f"save_state: the tensor {where!r} is on the meta device and has no values")
    if tensor.dtype in _NAMES and tensor.layout == torch.strided and not tensor.is_quantized:
        return
    kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
    raise StateError(
        f"save_state: the tensor {where!r} is {kind}, which a safetensors file cannot hold; "
        "convert it first (`to_dense()`, `dequantize()`, `torch.view_as_real()`)"
    )


def lay_out(pieces: Sequence[Piece]) -> FileLayout:
    """The file of some pieces, no two of one name."""
    ordered = sorted(pieces, key=lambda piece: -piece.dtype.itemsize)
    sharding = {piece.name: {"saved_offsets": list(piece.offsets)} for piece in ordered}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(sharding)}
    header: dict[str, object] = {"__metadata__": metadata}
    places = []
    at = 0
    for piece in ordered:
        places.append((piece, at))
        header[piece.name] = {
            "dtype": _NAMES[piece.dtype],
            "shape": list(piece.shape),
            "data_offsets": [at, at + piece.size_bytes],
        }
        at += piece.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT_BYTES)
    data = 8 + len(text)
    return FileLayout(
        len(text).to_bytes(8, "little") + text, [(piece, data + offset) for piece, offset in places], data + at
    )
