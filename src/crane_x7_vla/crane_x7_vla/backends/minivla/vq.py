"""The VQ that a MiniVLA is trained with: what it must agree with, and the units of its chunks."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import cast

import torch

from crane_x7_vla.backends.action_units import ActionUnits
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.checkpoints.vq import TRAIN_VQ, TrainedVQ, VQUnits, load_vq
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import to_json
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.models.vq import VQShape
from crane_x7_vla.robot import RobotSpec
from crane_x7_vla.transforms.action import Normalization

TRAIN_A_VQ = f"train one with: {TRAIN_VQ} --data-root DIR, and name its folder: --vq-path DIR"
"""What to type where a VQ is missing or of another robot."""


def vq_shape(config: MiniVLAConfig, robot: RobotSpec) -> VQShape:
    """Dimensions that the config says."""
    vq = config.minivla.vq
    return VQShape(
        action_horizon=vq.action_horizon,
        action_dim=robot.size,
        n_latent=vq.n_latent,
        n_embed=vq.n_embed,
        n_groups=vq.n_groups,
    )


def vq_units(config: MiniVLAConfig, robot: RobotSpec) -> VQUnits:
    """What the config's actions are in."""
    settings = config.minivla
    return VQUnits(
        joint_names=robot.joint_names,
        action_form=settings.action_form,
        action_source=config.data.action_source,
        normalization=settings.normalization,
        span_floor=settings.span_floor,
    )


def fitting_vq(directory: Path, config: MiniVLAConfig, robot: RobotSpec) -> TrainedVQ:
    """The VQ in a directory; raises ConfigError where it is not for this robot and these settings."""
    trained = load_vq(directory)
    found, expected = trained.vq.shape, vq_shape(config, robot)
    if found.action_dim != expected.action_dim:
        raise ConfigError(
            f"the VQ in {directory} is for {found.action_dim} numbers, {robot.name} has {expected.action_dim} joints; "
            f"{TRAIN_A_VQ}"
        )
    for size in (trained.statistics.action.size, trained.statistics.state.size):
        if size != robot.size:
            raise CheckpointError(
                f"{directory / STATISTICS_FILE} describes {size} joints, the VQ beside it {robot.size}; copy the VQ "
                "again"
            )
    joints = itertools.zip_longest(trained.units.joint_names, robot.joint_names, fillvalue="none")
    for number, (theirs, ours) in enumerate(joints, start=1):
        if theirs != ours:
            raise ConfigError(
                f"joint {number} of the VQ in {directory} is {theirs}, that of {robot.name} is {ours}; {TRAIN_A_VQ}"
            )
    wanted = {f"minivla.vq.{name}": value for name, value in dataclasses.asdict(expected).items()}
    settings = dataclasses.asdict(vq_units(config, robot))
    del settings["joint_names"]
    wanted |= {f"data.{name}" if name == "action_source" else f"minivla.{name}": settings[name] for name in settings}
    has = {**dataclasses.asdict(found), **dataclasses.asdict(trained.units)}
    for setting, value in wanted.items():
        if has[setting.rpartition(".")[2]] != value:
            raise ConfigError(
                f"{setting} is {value!r}, but the VQ in {directory} was "
                f"trained with {has[setting.rpartition('.')[2]]!r}; use the same, or {TRAIN_A_VQ}"
            )
    return trained


def units_of(trained: TrainedVQ, robot: RobotSpec) -> ActionUnits:
    """The units of a VQ's chunks: by its own statistics, whatever episodes the model learns from later."""
    units = trained.units
    return ActionUnits(
        robot,
        trained.statistics,
        action_form=units.action_form,
        normalization=cast(Normalization, units.normalization),
        span_floor=units.span_floor,
        action_source=units.action_source,
    )


def is_same(one: TrainedVQ, other: TrainedVQ) -> bool:
    """Whether the codes of both mean the same actions."""
    if (one.units, to_json(one.statistics)) != (other.units, to_json(other.statistics)):
        return False
    theirs = other.vq.state_dict()
    return all(key in theirs and torch.equal(v.cpu(), theirs[key].cpu()) for key, v in one.vq.state_dict().items())


def check_same(trained: TrainedVQ, directory: Path) -> None:
    """Raise CheckpointError where the VQ in a checkpoint is another one: its codes would mean other actions."""
    if not is_same(trained, load_vq(directory)):
        raise CheckpointError(
            f"{directory} holds another VQ than this run's; go on with the same one: --vq-path {directory}"
        )
