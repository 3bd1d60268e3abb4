"""Fold LoRA adapters into their base model: ``python -m crane_x7_vla.scripts.merge_lora``.

Writes a model directory that inference loads, in the published layout, and checks that it gives the actions of the
unmerged model before it appears under its name.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crane_x7_vla.backends.base import Backend
from crane_x7_vla.backends.restoring import restore_backend
from crane_x7_vla.checkpoints.adapters import ADAPTERS, MERGE_INFO, is_adapter_folder
from crane_x7_vla.checkpoints.base_model import local_model
from crane_x7_vla.checkpoints.lora import FoldReport, fold
from crane_x7_vla.checkpoints.store import refuse_experiment, sync_tree
from crane_x7_vla.command import run_command
from crane_x7_vla.config.base import VLAConfig
from crane_x7_vla.config.yaml import CONFIG_NAME, dump_config, load_config
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import DatasetStatistics, load_statistics
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.training.preflight import check_folder
from crane_x7_vla.types import Observation

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_PROBES = 4
_TOLERANCE = 5e-3
_NOTEWORTHY = 0.1
_LOCK = ".lock"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``."""
    return run_command(lambda: _run(_parser().parse_args(argv)), interrupted="interrupted; nothing was written")


def _run(arguments: argparse.Namespace) -> int:
    merge(
        arguments.adapter_path,
        arguments.output_path,
        base_model=arguments.base_model,
        dtype=arguments.dtype,
        tolerance=arguments.tolerance,
    )
    return 0


def merge(
    adapter_path: Path,
    output_path: Path,
    *,
    base_model: str | None = None,
    dtype: str = "auto",
    tolerance: float = _TOLERANCE,
) -> None:
    """Merge and verify; ``output_path`` appears only when that succeeded.

    adapter_path: checkpoint-N/lora_adapters, or checkpoint-N. base_model: None for the one the checkpoint names.
    tolerance: largest difference of the actions, rad. Raises CheckpointError.
    """
    checkpoint = _checkpoint(adapter_path)
    if output_path.exists():
        raise CheckpointError(f"{output_path} exists already; remove it or choose another --output_path")
    check_folder(output_path.parent, option="--output_path")
    config = _with_base(load_config(_need(checkpoint, CONFIG_NAME)), base_model)
    statistics = load_statistics(_need(checkpoint, STATISTICS_FILE))

    with _written(output_path) as unfinished:
        print(f"[1/4] loading {checkpoint / ADAPTERS} on {_base_of(config)}")
        backend, model = restore_backend(checkpoint, config=config)
        stored = next(value.dtype for name, value in model.named_parameters() if name.endswith("base_layer.weight"))
        gigabytes = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e9
        print(f"      folding and comparing in float32 takes {gigabytes:.1f} GB of memory")
        probes = _probes(config, robot_spec(config.robot), statistics, backend)
        expected = _actions(backend, model, probes)

        target = _DTYPES[dtype] or stored
        print(f"[2/4] folding in float32, storing as {_name(target)}")
        merged, report = fold(model, dtype=target)
        _print_report(report, target)

        print(f"[3/4] writing {output_path}")
        backend.save(merged, unfinished)
        (unfinished / CONFIG_NAME).write_text(dump_config(config), encoding="utf-8")
        shutil.copyfile(checkpoint / STATISTICS_FILE, unfinished / STATISTICS_FILE)
        del model, merged

        print("[4/4] comparing the actions of the merged directory with those of the adapters on the base")
        difference = float(np.abs(_actions(*restore_backend(unfinished), probes) - expected).max())
        _check(difference, tolerance, target)
        information = {
            "adapter_path": str(checkpoint / ADAPTERS),
            "base_model": _base_of(config),
            "dtype": _name(target),
            "largest_action_difference_rad": difference,
            **dataclasses.asdict(report),
        }
        (unfinished / MERGE_INFO).write_text(json.dumps(information, indent=2) + "\n", encoding="utf-8")
    print(f"merged and unmerged actions differ by at most {difference:.2g} rad (allowed: {tolerance:g})")
    print(f"done: {output_path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla.scripts.merge_lora", description="Fold LoRA adapters into their base model."
    )
    parser.add_argument(
        "--adapter_path",
        "--adapter-path",
        type=Path,
        required=True,
        metavar="DIR",
        help="checkpoint-N/lora_adapters of an experiment",
    )
    parser.add_argument(
        "--output_path", "--output-path", type=Path, required=True, metavar="DIR", help="model directory to write"
    )
    parser.add_argument(
        "--base_model",
        "--base-model",
        metavar="ID",
        help="base model, a directory or a Hugging Face id; default: the one the checkpoint was trained on",
    )
    parser.add_argument(
        "--dtype",
        choices=list(_DTYPES),
        default="auto",
        help="how the weights are stored; auto: as the base has them. bfloat16 can round small updates away. What was "
        "trained in full, such as the action head, stays in float32",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=_TOLERANCE,
        metavar="RAD",
        help="largest difference between merged and unmerged actions (default: %(default)s)",
    )
    return parser


def _checkpoint(adapter_path: Path) -> Path:
    """The checkpoint-N directory of either form of --adapter_path."""
    refuse_experiment(adapter_path)
    adapters = adapter_path / ADAPTERS if (adapter_path / ADAPTERS).is_dir() else adapter_path
    if not is_adapter_folder(adapters):
        raise CheckpointError(
            f"{adapter_path} holds no LoRA adapters; expected outputs/EXPERIMENT/checkpoint-N/{ADAPTERS}"
        )
    return adapters.resolve().parent


@contextmanager
def _written(output_path: Path) -> Iterator[Path]:
    """An empty folder that becomes ``output_path`` after the block, or is removed where that raises.

    A lock in it, which the kernel releases however a merge ends, tells one at work from what a killed one left.
    Raises CheckpointError where another merge is at work on this path.
    """
    folder = output_path.with_name(f".{output_path.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended = os.fstat(lock.fileno()).st_nlink == 0  # between our opening and locking it
        except BlockingIOError:
            ended = True
        if ended:
            raise CheckpointError(
                f"another merge is writing {output_path}; wait for it, or choose another --output_path"
            )
        try:
            _clear(folder)
            yield folder
            sync_tree(folder)
            folder.rename(output_path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (output_path / _LOCK).unlink()


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != _LOCK:
            left.unlink()


def _need(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        raise CheckpointError(f"{directory} lacks {name}; merge adapters where training saved them, in checkpoint-N")
    return directory / name


def _with_base(config: VLAConfig, base_model: str | None) -> VLAConfig:
    if base_model is None:
        return config
    base_model = str(local_model(base_model) or base_model)  # the merged config is read from other working directories
    block: Any = getattr(config, config.block)
    return dataclasses.replace(config, **{config.block: dataclasses.replace(block, model_id=base_model)})


def _base_of(config: VLAConfig) -> str:
    return str(getattr(config, config.block).model_id)


def _probes(config: VLAConfig, robot: RobotSpec, statistics: DatasetStatistics, backend: Backend) -> list[Observation]:
    """Observations whose answers are compared: states from the data's range, images of noise and of plain colours."""
    rng = np.random.default_rng(0)
    probes: list[Observation] = []
    for index in range(_PROBES):
        state = rng.uniform(statistics.state.q01, statistics.state.q99).astype(np.float32)
        images: dict[str, np.ndarray] = {}
        for camera in backend.spec.cameras:
            shape = (camera.height or 64, camera.width or 64, 3)
            colours = rng.integers(0, 256, shape if index % 2 else (1, 1, 3), dtype=np.uint8)
            images[camera.name] = np.broadcast_to(colours, shape).copy()
        instruction = config.data.instruction or "pick up the red cube"
        probes.append(
            Observation(
                images=images,
                state=robot.clamp(state),
                commanded=robot.clamp(state),
                instruction=instruction,
                stamp=0.0,
            )
        )
    return probes


def _actions(backend: Backend, model: nn.Module, probes: list[Observation]) -> np.ndarray:
    """float32 [n, T, A] rad, computed in float32; ``model`` stays in it."""
    batch = backend.processor.collate([backend.processor.encode(probe) for probe in probes])
    with torch.inference_mode():
        return backend.processor.decode(backend.comparable(model.float().eval(), batch), probes)


def _print_report(report: FoldReport, dtype: torch.dtype) -> None:
    print(
        f"      {report.layers} layers; the adapters change the weights by {report.update:.2%}; storing as "
        f"{_name(dtype)} loses {report.error:.2%} of the change (worst: {report.worst:.2%}, {report.worst_layer})"
    )
    if report.error > _NOTEWORTHY:
        print("      that is much: --dtype float32 keeps all of it, at twice the size")


def _check(difference: float, tolerance: float, dtype: torch.dtype) -> None:
    if not difference <= tolerance:
        remedy = (
            "float32 rounds too, so allow more if that is little: --tolerance"
            if dtype == torch.float32
            else f"rounding to {_name(dtype)} swallowed the update; store it with: --dtype float32"
        )
        raise CheckpointError(
            f"the merged model's actions differ from the adapters' by {difference:.2g} rad, more than the allowed "
            f"{tolerance:g}; nothing was written. {remedy[0].upper()}{remedy[1:]}"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
