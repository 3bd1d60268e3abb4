"""Files of ``torch.save``, read without running what is in them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from crane_x7_vla.checkpoints.files import require_file
from crane_x7_vla.errors import CheckpointError

_DISTRIBUTED = "module."
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"  # up to torch 1.5, without zip
_DAMAGE = (
    *(RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    struct.error,
)
"""What unpickling a damaged file raises."""


def read_torch(path: Path) -> Mapping[str, Any]:
    """The dictionary in a ``.pt`` file, its tensors mapped from the disk and not copied, where the file allows it.

    Raises CheckpointError where it is missing, cut off, no dictionary, or holds more than tensors and plain values.
    """
    require_file(path)
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if not start.startswith((_ZIP, _PICKLE)):
        raise CheckpointError(f"{path} is damaged or cut off (torch.save writes no such file); copy it again")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=start == _ZIP)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, so it is not loaded ({_first_line(error)}); "
            "get the weights alone from whoever wrote it"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged or cut off ({_first_line(error)}); copy it again") from error
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path} is a {type(value).__name__}; expected a dictionary of weights")
    return value


def state_of(value: Any, *, what: str) -> dict[str, Tensor]:
    """A state dict without the ``module.`` that DistributedDataParallel puts before every key.

    what: file and place, for messages. Raises CheckpointError where ``value`` is no state dict.
    """
    if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise CheckpointError(f"{what} is not a dictionary of tensors; copy the model again")
    return {str(key).removeprefix(_DISTRIBUTED): tensor for key, tensor in value.items()}


def shapes_in(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """{key: shape}."""
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
