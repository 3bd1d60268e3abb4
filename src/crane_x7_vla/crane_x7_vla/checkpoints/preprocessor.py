"""preprocessor_config.json: how OpenVLA's image processor turns a picture into what each vision tower sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from crane_x7_vla.checkpoints.files import read_json
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.transforms.image import ChannelNormalization

PREPROCESSOR_FILE = "preprocessor_config.json"


def read_normalizations(directory: Path, towers: int) -> tuple[ChannelNormalization, ...]:
    """One per tower; raises CheckpointError naming the file."""
    path = directory / PREPROCESSOR_FILE
    entries = read_json(path).get("tvf_normalize_params")
    try:
        normalizations = tuple(
            ChannelNormalization(_triple(entry["mean"]), _triple(entry["std"])) for entry in entries or ()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: tvf_normalize_params lacks mean and std of three channels ({error})") from error
    if len(normalizations) != towers:
        raise CheckpointError(
            f"{path}: tvf_normalize_params has {len(normalizations)} entries for {towers} vision towers"
        )
    return normalizations


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def write_preprocessor(directory: Path, normalizations: Sequence[ChannelNormalization], size: int) -> None:
    """What OpenVLA's processor computes with (openvla processing_prismatic.py:128-145), and what it is made from.

    size: side of the square image that the towers see, pixels.
    """
    preprocessor = {
        "processor_class": "PrismaticProcessor",
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": len(normalizations) == 2,
        "input_sizes": [[3, size, size]] * len(normalizations),
        "interpolations": ["bicubic"] * len(normalizations),
        "means": [list(entry.mean) for entry in normalizations],
        "stds": [list(entry.std) for entry in normalizations],
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(entry.mean), "std": list(entry.std)} for entry in normalizations
        ],
        "tvf_resize_params": [
            {"antialias": True, "interpolation": 3, "max_size": None, "size": [size, size]} for _ in normalizations
        ],
        "tvf_crop_params": [{"output_size": [size, size]} for _ in normalizations],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
    }
    (directory / PREPROCESSOR_FILE).write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
