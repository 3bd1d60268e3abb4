"""What a run needs besides the model's files to go on exactly where it stopped: ``trainer_state.pt``.

Tensors, numbers and text only, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.training.distributed import World, gather
from crane_x7_vla.training.ema import Ema

FILE_NAME = "trainer_state.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The checkpoint with the lowest loss on held-out episodes."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """step: updates made. samples: drawn so far by all processes. seconds: spent training.

    weights: the trained parameters as the optimizer has them (the model's files may hold their moving average), and
    buffers. random: {'cpu': [state of each process], 'cuda': …}.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: Best | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)
    ema: Mapping[str, Any] = field(default_factory=dict)
    random: Mapping[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: Ema,
        *,
        step: int,
        samples: int,
        seconds: float,
        best: Best | None,
        world: World,
        device: torch.device,
    ) -> TrainerState:
        """The state of a run; called by every process, since each has its own random numbers."""
        random = {"cpu": gather(torch.get_rng_state(), world, device)}
        if device.type == "cuda":
            random["cuda"] = gather(torch.cuda.get_rng_state(device), world, device)
        return cls(
            step=step,
            samples=samples,
            seconds=seconds,
            best=best,
            weights=_trained_weights(model),
            optimizer=optimizer.state_dict()["state"],
            scaler=scaler.state_dict(),
            ema=ema.state(),
            random=random,
        )

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, ema: Ema) -> None:
        """Moments, loss scale and averages as they were; learning rate, decay and the like stay as configured now."""
        groups = optimizer.state_dict()["param_groups"]
        try:
            optimizer.load_state_dict({"state": self.optimizer, "param_groups": groups})
            scaler.load_state_dict(dict(self.scaler))
            ema.load(self.ema)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint's {FILE_NAME} does not fit this run: {reason}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]


def save_state(state: TrainerState, directory: Path) -> None:
    """Write trainer_state.pt."""
    values = {name: getattr(state, name) for name in TrainerState.__dataclass_fields__}
    values["best"] = None if state.best is None else asdict(state.best)
    with (directory / FILE_NAME).open("wb") as file:  # a full disk is an OSError here, a RuntimeError from a path
        torch.save(values, file)


def load_state(checkpoint: Path) -> TrainerState:
    """Read trainer_state.pt. Raises CheckpointError where it is missing or damaged."""
    path = checkpoint / FILE_NAME
    if not path.is_file():
        raise CheckpointError(f"no {FILE_NAME} in {checkpoint}; training can resume from a checkpoint-N directory only")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        best = values.pop("best")
        return TrainerState(best=None if best is None else Best(**best), **values)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; resume from an earlier checkpoint") from error


def restore_weights(model: nn.Module, state: TrainerState) -> None:
    """The trained parameters and buffers as they were. Raises CheckpointError where the model has others."""
    if not state.weights:
        return
    own = _trained_weights(model)
    different = [
        name
        for name in own.keys() | state.weights.keys()
        if name not in own or name not in state.weights or own[name].shape != state.weights[name].shape
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint's weights are not those of this model: {sorted(different)[0]} and {len(different) - 1} "
            "more differ; resume with the config.yaml of the checkpoint"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state.weights[name])


def restore_random(state: TrainerState, world: World, device: torch.device) -> None:
    """This process's random numbers as they were; with another number of processes new ones, from step and rank."""
    if len(state.random["cpu"]) != world.size:
        torch.manual_seed(torch.initial_seed() + state.step * world.size)
        return
    torch.set_rng_state(state.random["cpu"][world.rank])
    if device.type == "cuda" and "cuda" in state.random:
        torch.cuda.set_rng_state(state.random["cuda"][world.rank], device)


def _trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, and buffers that are saved."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
