"""Does a deployed policy do what training measured? ``python -m crane_x7_vla.scripts.check_policy``.

Runs training frames through ``load_policy`` and, with the checkpoint that was merged, on the path of training. Where
the policy is further off, the model is run in other ways, and the one that mends it says what was changed in between.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crane_x7_vla.backends import backend_class
from crane_x7_vla.backends.base import Backend
from crane_x7_vla.backends.device import chosen_device, torch_device
from crane_x7_vla.backends.prismatic_backend import PrismaticBackend
from crane_x7_vla.backends.restoring import restore_backend
from crane_x7_vla.checkpoints.adapters import ADAPTERS
from crane_x7_vla.checkpoints.layouts import shapes_of
from crane_x7_vla.command import run_command
from crane_x7_vla.config.base import require
from crane_x7_vla.config.yaml import CONFIG_NAME
from crane_x7_vla.data.dataset import TrainingSample
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.errors import USER_ERRORS, CheckpointError, ConfigError
from crane_x7_vla.policies.diagnosis import Change, Deployment, Finding, Recorded, changes, diagnose
from crane_x7_vla.policies.policy import LocalPolicy, Policy, load_policy
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.scripts.check_policy_frames import Frames, read_frames
from crane_x7_vla.scripts.check_policy_origin import checkpoint_of, default_picture, read_deployment, refuse_difference
from crane_x7_vla.training.preflight import check_file
from crane_x7_vla.training.reproduction import TrainingErrors, at_the_state, mean_error, training_errors

_TOLERANCE = 0.1
_ALWAYS_ALLOWED = 0.001  # rad, as GPUs and merging round
_BATCH = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``; 2 also where the policy does not do what training measured."""
    return run_command(lambda: _run(_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    plot: Path = arguments.plot or default_picture(arguments.model)
    check_file(plot, option="--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the picture needs matplotlib, which is not installed; type: pip install matplotlib")
    for option, low in (("samples", 1), ("episode", 0), ("tolerance", 0)):
        value = vars(arguments)[option]
        require(value >= low, f"--{option}", value, f"{low} or more")
    check(
        arguments.model,
        arguments.data,
        checkpoint=arguments.checkpoint,
        instruction=arguments.instruction,
        samples=arguments.samples,
        episode=arguments.episode,
        plot=plot,
        device=chosen_device(arguments.device),
        tolerance=arguments.tolerance,
    )
    return 0


def check(
    model: Path,
    data: Path,
    *,
    checkpoint: Path | None,
    instruction: str | None,
    samples: int,
    episode: int,
    plot: Path,
    device: str,
    tolerance: float,
) -> None:
    """Print what training and the deployed policy make of the same frames, and write the picture.

    Raises CheckpointError that names the likely cause where they do not agree. For the rest see the options.
    """
    torch_device(device)
    deployed = read_deployment(model, instruction=instruction)
    origin = _origin(model, checkpoint)
    if origin is not None:
        refuse_difference(model, deployed, *origin)
    trained = None if origin is None else origin[1]
    configs = [deployed.config] if trained is None else [trained.config, deployed.config]
    frames = read_frames(data, configs, samples=samples, episode=episode)
    robot = robot_spec(deployed.config.robot)
    print(f"{len(frames.samples)} frames of {frames.n_episodes} training episode(s) under {data}")
    if not deployed.statistics.fingerprint.startswith(frames.fingerprint):
        print(f"note: {model / STATISTICS_FILE} is not of exactly these episodes")

    measured = None
    if origin is not None:
        measured = _measured(*origin, frames, device, is_asked_for=checkpoint is not None)
    policy = load_policy(model, device=device)
    error = _error(policy, frames.samples, deployed.instruction)
    _plot(plot, policy, frames, deployed.instruction, robot)
    del policy
    still = [np.broadcast_to(sample.observation.state, sample.actions.shape) for sample in frames.samples]
    holding = mean_error(np.stack(still), frames.samples)
    print(f"deployed policy: {error:.4f} rad off; an arm that holds still: {holding:.4f} rad; picture: {plot}")

    expected = 0.0 if measured is None else measured.action_l1_rad
    allowed = tolerance * expected + _ALWAYS_ALLOWED
    if measured is not None and error - expected <= allowed:
        print(f"done: it does what training measured ({error - expected:+.2g} rad, allowed {allowed:+.2g})")
        return
    recorded = Recorded(cameras=frames.cameras, statistics=frames.statistics)

    def alternatives(now: Deployment) -> Iterator[Change]:
        return changes(now, trained=trained, recorded=recorded)

    print("trying other ways to run it")
    measure = _measure(model, frames, device)
    found = diagnose(deployed, error, expected=expected, allowed=allowed, alternatives=alternatives, measure=measure)
    *causes, last = dict.fromkeys(change.cause for change in alternatives(deployed))
    tried = f"no other {', '.join(causes)} or {last}" if causes else f"no other {last}"
    if measured is None and not (found and found[-1].error < holding):
        print(f"done: {tried} brings it {'nearer than an arm that holds still' if found else 'markedly nearer'}")
        return
    raise CheckpointError(_verdict(model, error, measured=measured, allowed=allowed, found=found, tried=tried))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla.scripts.check_policy",
        description="Compare what a deployed policy does on training frames with what training measured there.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="merged model, or checkpoint-N")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the episodes it was trained on")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="checkpoint-N that was merged; default: the one that the model names, if it is still there",
    )
    parser.add_argument("--instruction", metavar="TEXT", help="what the arm is told; default: as in training")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="frames to compare (default: %(default)s)")
    parser.add_argument(
        "--episode", type=int, default=0, metavar="N", help="training episode of the picture (default: %(default)s)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="the picture (default: DIR_check.png beside the model)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=_TOLERANCE,
        metavar="SHARE",
        help=f"of training's error, by which the policy's may be larger, beside {_ALWAYS_ALLOWED:g} rad "
        "(default: %(default)s)",
    )
    return parser


def _origin(model: Path, checkpoint: Path | None) -> tuple[Path, Deployment] | None:
    """The checkpoint that became the model, and how training ran it; None, and a line, where that is not known."""
    directory = checkpoint or checkpoint_of(model)
    if directory is None:
        print(f"note: the checkpoint that became {model} is not here (--checkpoint); only the settings can be tried")
        return None
    try:
        return directory, read_deployment(directory)
    except USER_ERRORS as error:
        if checkpoint is not None:
            raise
        print(f"note: {directory} cannot be compared with ({error}); only the settings can be tried")
        return None


def _measured(
    checkpoint: Path, trained: Deployment, frames: Frames, device: str, *, is_asked_for: bool
) -> TrainingErrors | None:
    """What training measures of the frames; None, and a line, where a checkpoint that nobody asked for is damaged."""
    try:
        backend, network = restore_backend(checkpoint)
    except USER_ERRORS as error:
        if is_asked_for:
            raise
        print(f"note: {checkpoint} cannot be compared with ({error}); only the settings can be tried")
        return None
    samples = _told(frames.samples, trained.instruction)
    measured = training_errors(backend, network, samples, device=torch_device(device), batch_size=_BATCH)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in measured.metrics.items())
    print(f"training path of {checkpoint}: {measured.action_l1_rad:.4f} rad off ({metrics})")
    return measured


def _told(samples: Sequence[TrainingSample], instruction: str | None) -> list[TrainingSample]:
    if instruction is None:
        return list(samples)
    return [replace(s, observation=replace(s.observation, instruction=instruction)) for s in samples]


def _actions(policy: Policy, samples: Sequence[TrainingSample], instruction: str | None) -> np.ndarray:
    """float32 [n, T, A] rad."""
    seen = [at_the_state(sample).observation for sample in _told(samples, instruction)]
    batches = [policy.infer(seen[start : start + _BATCH]) for start in range(0, len(seen), _BATCH)]
    return np.stack([chunk.actions for batch in batches for chunk in batch])


def _error(policy: Policy, samples: Sequence[TrainingSample], instruction: str | None) -> float:
    return mean_error(_actions(policy, samples, instruction), samples)


def _plot(path: Path, policy: Policy, frames: Frames, instruction: str | None, robot: RobotSpec) -> None:
    from crane_x7_vla.policies.joint_plot import write_joint_plot  # matplotlib, asked for above

    path.parent.mkdir(parents=True, exist_ok=True)
    write_joint_plot(
        path,
        predicted=_actions(policy, frames.episode, instruction)[:, 0],
        recorded=np.stack([sample.actions[0] for sample in frames.episode]),
        joint_names=robot.joint_names,
        dt=policy.spec.dt,
        title=f"{frames.name}: first target of every prediction, and the recorded one",
    )


def _measure(model: Path, frames: Frames, device: str) -> Callable[[Deployment], float]:
    """The error of the model in a directory when it is run in another way, rad."""
    network = None if (model / ADAPTERS).is_dir() else restore_backend(model)[1]
    shapes = None if network is None else shapes_of(network)  # a policy gives its model other ones

    def measure(deployment: Deployment) -> float:
        policy = LocalPolicy(*_as_deployed(model, network, shapes, deployment), device=device)
        return _error(policy, frames.samples, deployment.instruction)

    return measure


def _as_deployed(
    directory: Path, network: nn.Module | None, shapes: Mapping[str, tuple[int, ...]] | None, deployment: Deployment
) -> tuple[Backend, nn.Module]:
    """Backend and model of another deployment of ``directory``, whose ``network`` has the ``shapes``; Nones where it
    holds adapters. The model is read again then, and where its parts are others: FiLM may be switched on or off.
    """
    backend: Any = backend_class(deployment.config.backend)(
        deployment.config.in_checkpoint(directory),
        robot=robot_spec(deployment.config.robot),
        statistics=deployment.statistics,
        directory=None if network is None else directory,
    )
    return backend, network if network is not None and _shapes(backend) == shapes else backend.restore(directory)


def _shapes(backend: PrismaticBackend[Any, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(backend.new_model())


def _verdict(
    model: Path, error: float, *, measured: TrainingErrors | None, allowed: float, found: Sequence[Finding], tried: str
) -> str:
    """The line that says what is wrong. tried: what does not help, where nothing is found."""
    said = f"{model} is {error:.4f} rad off on frames of its training"
    if measured is not None:
        said += f", where training measures {measured.action_l1_rad:.4f} (allowed: {allowed:.2g} more)"
    if not found:
        return f"{said}; {tried} mends it, so its weights are others: merge the checkpoint again"
    steps = "; ".join(f"{item.change.cause}: {item.error:.4f} rad with {item.change.text}" for item in found)
    return f"{said}. Likely cause: {steps}. Mend {CONFIG_NAME} and {STATISTICS_FILE} there, or merge again"


if __name__ == "__main__":
    sys.exit(main())
