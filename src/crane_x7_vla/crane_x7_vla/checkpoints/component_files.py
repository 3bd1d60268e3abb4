"""Files of the parts that OpenVLA-OFT trains in full, beside a model: NAME.safetensors or NAME--STEP_checkpoint.pt.

With FiLM, published runs store the whole vision backbone so, its adapters live inside (openvla-oft finetune.py:604-646
at 213c5ff); the vision weights in their model files are then those from before the training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from crane_x7_vla.checkpoints.layouts import component_file, tensor_shapes
from crane_x7_vla.checkpoints.lowrank import fold_live
from crane_x7_vla.checkpoints.torch_files import read_torch, state_of
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.models.openvla_oft import ACTION_HEAD, PROPRIO
from crane_x7_vla.robot import RobotSpec

_JOINTS = {ACTION_HEAD: ("model.fc2.bias", 0), PROPRIO: ("fc1.weight", 1)}
"""Where the shapes of a part say for how many joints it is: (weight, axis)."""
_VISION = "vision_backbone"
_WRAPPED_BLOCK = re.compile(r"(vision_backbone\.\w+\.blocks\.\d+\.)block\.")


def find_component(directory: Path, name: str) -> Path | None:
    """The file of a part in a model directory, None where it has none. Raises CheckpointError where it has several."""
    ours = component_file(directory, name)
    published = sorted(directory.glob(f"{name}--*checkpoint.pt"))
    files = [ours, *published] if ours.is_file() else published
    if len(files) > 1:
        raise CheckpointError(
            f"{directory} has several files of {name}: {', '.join(path.name for path in files)}; keep one"
        )
    return files[0] if files else None


def read_component(path: Path) -> dict[str, Tensor]:
    """The weights in a file of ``find_component``, by the part's own names."""
    if path.suffix == ".pt":
        return state_of(read_torch(path), what=str(path))
    tensor_shapes(path)
    return load_file(path)


def other_joints(name: str, shapes: Mapping[str, tuple[int, ...]], robot: RobotSpec) -> str | None:
    """That a part of these shapes is for another number of joints than the robot has, in words; None if it is not."""
    key, axis = _JOINTS.get(name, ("", 0))
    found = shapes[key][axis] if len(shapes.get(key, ())) > axis else robot.size
    return None if found == robot.size else f"is for {found} numbers, {robot.name} has {robot.size} joints"


def film_backbone(directory: Path) -> Path | None:
    """The file of a vision backbone with FiLM, None where there is none."""
    return find_component(directory, _VISION)


def read_film_backbone(path: Path) -> dict[str, Tensor]:
    """The vision backbone with FiLM by our names, its adapters folded in; of the dead weights, too."""
    return {
        _WRAPPED_BLOCK.sub(r"\1", key): value
        for key, value in fold_live(state_of(read_torch(path), what=str(path)), source=path).items()
    }
