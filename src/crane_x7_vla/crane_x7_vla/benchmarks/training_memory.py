"""What fine-tuning with adapters takes of a GPU's memory: ``python -m crane_x7_vla.benchmarks.training_memory``.

Reckoned from the model's shapes on torch's meta device, so it needs neither a GPU nor the memory. What one layer holds
while it is recomputed is counted twice, for its gradients.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from crane_x7_vla.backends.base import Batch
from crane_x7_vla.backends.minivla.config import MiniVLAConfig
from crane_x7_vla.backends.prismatic_config import PrismaticVLAConfig
from crane_x7_vla.benchmarks.subject import (
    MeasuredBackend,
    add_config_arguments,
    chosen_config,
    observations,
    random_backend,
    random_model,
    without_base,
)
from crane_x7_vla.checkpoints.layouts import component_modules
from crane_x7_vla.checkpoints.lora import add_adapters
from crane_x7_vla.command import run_command
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.models.decoder import DecoderLayer
from crane_x7_vla.models.vit import Block
from crane_x7_vla.robot import robot_spec

_META = torch.device("meta")
_GIB = 2**30
_CONTEXT = 1 * _GIB  # CUDA's own, the libraries' work spaces, and gaps between blocks; assumed, not reckoned


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``."""
    return run_command(lambda: _run(_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size is {arguments.batch_size}; expected 1 or more")
    if not arguments.memory > 0:
        raise ConfigError(f"--memory is {arguments.memory:g}; expected GiB above 0")
    config = chosen_config(arguments)
    parts = training_memory(config, batch_size=arguments.batch_size, checkpointing=not arguments.no_checkpointing)
    shown = Table(title=f"{config.backend}: LoRA rank {config.settings.lora_rank}, batch {arguments.batch_size}")
    shown.add_column("what")
    shown.add_column("GiB", justify="right")
    for name, size in parts.items():
        shown.add_row(name, f"{size / _GIB:.2f}")
    total = sum(parts.values())
    shown.add_section()
    shown.add_row("sum", f"{total / _GIB:.2f}")
    Console().print(shown)
    verdict = "fits" if total <= arguments.memory * _GIB else "does not fit"
    print(f"estimate: {verdict} into {arguments.memory:g} GiB; not measured on a GPU")
    return 0


def training_memory(config: PrismaticVLAConfig, *, batch_size: int, checkpointing: bool = True) -> dict[str, int]:
    """Bytes by what takes them. config: its LoRA settings count, whatever base model it names.

    The base is in bfloat16; what is trained is in float32, with gradients and AdamW's two moments.
    """
    settings = config.settings
    if isinstance(config, MiniVLAConfig):  # the meta device finds no codes; a token for each joint is one token more
        vq = dataclasses.replace(config.minivla.vq, enabled=False)
        config = dataclasses.replace(config, minivla=dataclasses.replace(config.minivla, vq=vq, n_action_steps=None))
    backend = random_backend(without_base(config))
    model = random_model(backend, device=_META, dtype=torch.bfloat16)
    components = [module for name in backend.components for module in component_modules(name)]
    adapted = add_adapters(
        model,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_target,
        trained=tuple(dict.fromkeys((*components, *settings.trained_modules))),
        without=components,
        base_model="",
        seed=0,
    )
    adapted = adapted.to(_META).train()
    if checkpointing:
        backend.bare(adapted).enable_gradient_checkpointing()
    kept, recomputed = _activations(backend, adapted, _batch(backend, batch_size))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    frozen = [parameter for parameter in adapted.parameters() if not parameter.requires_grad]
    average = {"their moving average": 4 * trained} if config.training.ema_decay else {}
    halves = (
        {"autocast's copies of the trained weights": 2 * trained} if config.training.mixed_precision != "no" else {}
    )
    return {
        f"{sum(p.numel() for p in frozen) / 1e6:,.0f} M weights of the base, bfloat16": size_of(frozen),
        f"{trained / 1e6:,.0f} M trained weights, float32": 4 * trained,
        "their gradients": 4 * trained,
        "AdamW's two moments": 8 * trained,
        **average,
        **halves,
        "kept for the backward pass": kept,
        "one layer recomputed, and its gradients": 2 * recomputed if checkpointing else 0,
        "CUDA and its libraries (assumed)": _CONTEXT,
    }


def _activations(backend: MeasuredBackend, model: nn.Module, batch: Batch) -> tuple[int, int]:
    """(bytes that a forward pass keeps for the backward pass, most bytes that one layer keeps on its own)."""
    weights = {memory_of(parameter) for parameter in model.parameters()}
    calls: dict[tuple[object, ...], Callable[[], object]] = {}

    def remember(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        shapes = tuple(a.shape if isinstance(a, Tensor) else None for a in arguments)
        calls.setdefault((type(layer), shapes), lambda: layer(*arguments))

    layers = [module for module in model.modules() if isinstance(module, DecoderLayer | Block)]
    hooks = [layer.register_forward_pre_hook(remember) for layer in layers]
    with kept_tensors(weights) as kept:
        loss = backend.loss(model, batch).value
    for hook in hooks:
        hook.remove()
    largest = 0
    for call in calls.values():
        with kept_tensors(weights) as own:
            call()
        largest = max(largest, size_of(own.values()))
    del loss
    return size_of(kept.values()), largest


@contextmanager
def kept_tensors(weights: set[int]) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Memory that autograd keeps within the block, each once, the model's weights left out."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if memory_of(tensor) not in weights:
            kept[memory_of(tensor)] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _batch(backend: MeasuredBackend, size: int) -> Batch:
    robot = robot_spec(backend.config.robot)
    seen = observations(backend.spec, robot, count=size, height=48, width=64, instruction="pick up the red cube")
    actions = np.zeros((backend.spec.action_horizon, robot.size), np.float32)
    batch = backend.processor.collate([backend.processor.encode(observation, actions) for observation in seen])
    return {name: value.to(_META) for name, value in batch.items()}


def memory_of(tensor: Tensor) -> int:
    """Names a tensor's memory; on the meta device all addresses are 0."""
    return tensor.untyped_storage()._cdata


def size_of(things: Iterable[Tensor | torch.UntypedStorage]) -> int:
    return sum(thing.nbytes if isinstance(thing, Tensor) else thing.nbytes() for thing in things)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla.benchmarks.training_memory",
        description="What fine-tuning with adapters takes of a GPU's memory, reckoned without one.",
    )
    add_config_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="samples of a pass (default: 1)")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep everything instead of recomputing layers")
    parser.add_argument("--memory", type=float, default=24, metavar="GIB", help="of the GPU (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
