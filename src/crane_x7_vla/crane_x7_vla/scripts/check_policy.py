"""Does a deployed policy do what training measured? ``python -m crane_x7_vla.scripts.check_policy``.

Runs training frames through ``load_policy`` and, with the checkpoint that was merged, on the path of training. Where
the policy is further off, the model is run in other ways, and the one that mends it says what was changed in between.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from crane_x7_vla.backends import backend_class
from crane_x7_vla.backends.base import Backend
from crane_x7_vla.backends.device import chosen_device, torch_device
from crane_x7_vla.backends.restoring import restore_backend
from crane_x7_vla.checkpoints.adapters import ADAPTERS
from crane_x7_vla.checkpoints.store import refuse_experiment
from crane_x7_vla.command import run_command
from crane_x7_vla.config.base import CameraConfig, VLAConfig, require
from crane_x7_vla.config.yaml import CONFIG_NAME, load_config
from crane_x7_vla.data.dataset import (
    EpisodeDataset,
    TrainingSample,
    choose_action_source,
    image_sizes,
    load_episodes,
    split_episodes,
)
from crane_x7_vla.data.statistics import FILE_NAME as STATISTICS_FILE
from crane_x7_vla.data.statistics import DatasetStatistics, compute_statistics, fingerprint_episodes, load_statistics
from crane_x7_vla.errors import USER_ERRORS, CheckpointError, ConfigError
from crane_x7_vla.policies.diagnosis import Change, Deployment, Finding, Recorded, changes, diagnose
from crane_x7_vla.policies.policy import LocalPolicy, Policy, load_policy
from crane_x7_vla.robot import RobotSpec, robot_spec
from crane_x7_vla.training.loading import find_episodes
from crane_x7_vla.training.preflight import check_file
from crane_x7_vla.training.record import FILE_NAME as RECORD_FILE
from crane_x7_vla.training.reproduction import TrainingErrors, at_the_state, mean_error, training_errors
from crane_x7_vla.transforms.action import action_rows

_TOLERANCE = 0.1
_ALWAYS_ALLOWED = 0.001  # rad, as GPUs and merging round
_BATCH = 8
_MERGE_INFO = "merge_info.json"  # of merge_lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """samples: training frames, spread over the episodes, with the recorded instructions. episode: every step of one.

    cameras: all that the episodes have. trajectories: (state, action) of each episode, [N, S] rad. fingerprint: of the
    episodes, as in statistics.
    """

    samples: list[TrainingSample]
    episode: list[TrainingSample]
    name: str
    n_episodes: int
    cameras: tuple[CameraConfig, ...]
    trajectories: list[tuple[np.ndarray, np.ndarray]]
    fingerprint: str


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``; 2 also where the policy does not do what training measured."""
    return run_command(lambda: _run(_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    whole: Path = arguments.model.resolve()  # of "." too
    plot: Path = arguments.plot or whole.with_name(f"{whole.name}_check.png")
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
    deployed = _deployment(model, instruction)
    frames = read_frames(data, deployed.config, samples=samples, episode=episode)
    robot = robot_spec(deployed.config.robot)
    print(f"{len(frames.samples)} frames of {frames.n_episodes} training episode(s) under {data}")
    if not deployed.statistics.fingerprint.startswith(frames.fingerprint):
        print(f"note: {model / STATISTICS_FILE} is not of exactly these episodes")

    trained, measured = _training(model, checkpoint, frames, device)
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
    found = _find_cause(model, deployed, error, trained, frames, expected=expected, allowed=allowed, device=device)
    if measured is None and not found:
        print("done: no other crop, prompt, statistics, cameras or action form brings it markedly nearer")
        return
    raise CheckpointError(_verdict(model, error, measured, allowed, found))


def read_frames(data: Path, config: VLAConfig, *, samples: int, episode: int) -> Frames:
    """Frames of the episodes that training with ``config`` takes from this folder. Raises DataError, ConfigError.

    With the recorded instructions, whatever the config says.
    """
    paths = find_episodes(data)
    if len(paths) > 1:
        settings = config.data
        paths, _ = split_episodes(
            paths, val_split=settings.val_split, seed=config.seed, train_split=settings.train_split
        )
    robot, used = robot_spec(config.robot), [camera.name for camera in config.cameras]
    episodes = load_episodes(paths, robot=robot, cameras=used, control_hz=config.data.control_hz)
    if episode >= len(episodes):
        raise ConfigError(f"--episode is {episode}, but there are {len(episodes)} training episodes, counted from 0")
    everywhere = [name for name in episodes[0].file.cameras if all(name in other.file.cameras for other in episodes)]
    sizes = image_sizes(episodes, everywhere)
    dataset = EpisodeDataset(
        episodes,
        horizon=config.action_horizon,
        action_source=choose_action_source(episodes, config.data.action_source),
        image_size=sizes,
        history=config.history,
    )
    start = sum(map(len, episodes[:episode]))
    numbers = np.linspace(0, len(dataset) - 1, min(samples, len(dataset))).round().astype(int)
    return Frames(
        samples=[dataset[int(number)] for number in numbers],
        episode=[dataset[number] for number in range(start, start + len(episodes[episode]))],
        name=episodes[episode].file.path.stem,
        n_episodes=len(episodes),
        cameras=tuple(CameraConfig(name=name, width=w, height=h) for name, (w, h) in sizes.items()),
        trajectories=list(dataset.trajectories()),
        fingerprint=fingerprint_episodes(paths, data),
    )


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


def _deployment(directory: Path, instruction: str | None) -> Deployment:
    """How a directory says that its model is run."""
    refuse_experiment(directory)
    for name in (CONFIG_NAME, STATISTICS_FILE):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} lacks {name}; expected a merged model or a checkpoint-N directory")
    config = load_config(directory / CONFIG_NAME)
    return Deployment(
        config=config,
        statistics=load_statistics(directory / STATISTICS_FILE),
        instruction=config.data.instruction if instruction is None else instruction,
    )


def _training(
    model: Path, checkpoint: Path | None, frames: Frames, device: str
) -> tuple[Deployment | None, TrainingErrors | None]:
    """How training ran the model and what it measures of the frames; Nones, and a line, where that is not known."""
    directory = checkpoint or _trained_as(model)
    if directory is None:
        print(f"note: the checkpoint that became {model} is not here (--checkpoint); only the settings can be tried")
        return None, None
    try:
        trained = _deployment(directory, None)
        backend, network = restore_backend(directory)
    except USER_ERRORS as error:
        if checkpoint is not None:
            raise
        print(f"note: {directory} cannot be compared with ({error}); only the settings can be tried")
        return None, None
    samples = _told(frames.samples, trained.instruction)
    measured = training_errors(backend, network, samples, device=torch_device(device), batch_size=_BATCH)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in measured.metrics.items())
    print(f"training path of {directory}: {measured.action_l1_rad:.4f} rad off ({metrics})")
    return trained, measured


def _trained_as(model: Path) -> Path | None:
    """The checkpoint-N that training wrote and ``model`` is, or was merged from; None where it is not known or gone."""
    if (model / RECORD_FILE).is_file():
        return model
    info = model / _MERGE_INFO
    if not info.is_file():
        return None
    try:
        checkpoint = Path(json.loads(info.read_text(encoding="utf-8"))["adapter_path"]).parent
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{info} is damaged ({error}); name the checkpoint with --checkpoint") from error
    return checkpoint if (checkpoint / CONFIG_NAME).is_file() else None


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


def _find_cause(
    model: Path,
    deployed: Deployment,
    error: float,
    trained: Deployment | None,
    frames: Frames,
    *,
    expected: float,
    allowed: float,
    device: str,
) -> list[Finding]:
    print("trying other ways to run it")
    network = restore_backend(model)[1]
    recorded = Recorded(cameras=frames.cameras, statistics=lambda config: _statistics_of(frames, config))

    def alternatives(now: Deployment) -> Iterator[Change]:
        return changes(now, trained=trained, recorded=recorded)

    def measure(deployment: Deployment) -> float:
        policy = LocalPolicy(*_as_deployed(model, network, deployment), device=device)
        return _error(policy, frames.samples, deployment.instruction)

    return diagnose(deployed, error, expected=expected, allowed=allowed, alternatives=alternatives, measure=measure)


def _as_deployed(directory: Path, network: nn.Module, deployment: Deployment) -> tuple[Backend, nn.Module]:
    """The backend of another deployment of the model ``network``, which is that of ``directory``."""
    has_adapters = (directory / ADAPTERS).is_dir()
    backend: Backend = backend_class(deployment.config.backend)(
        deployment.config,
        robot=robot_spec(deployment.config.robot),
        statistics=deployment.statistics,
        directory=None if has_adapters else directory,
    )
    return backend, backend.restore(directory) if has_adapters else network


def _statistics_of(frames: Frames, config: VLAConfig) -> DatasetStatistics:
    robot = robot_spec(config.robot)
    rows = [
        action_rows(
            state,
            action,
            gripper_index=robot.gripper_index,
            horizon=config.action_horizon,
            action_form=config.action_form,
        )
        for state, action in frames.trajectories
    ]
    states = np.concatenate([state for state, _ in frames.trajectories])
    return compute_statistics(
        states, np.concatenate(rows), num_trajectories=frames.n_episodes, fingerprint=frames.fingerprint
    )


def _verdict(
    model: Path, error: float, measured: TrainingErrors | None, allowed: float, found: Sequence[Finding]
) -> str:
    """The line that says what is wrong."""
    said = f"{model} is {error:.4f} rad off on frames of its training"
    if measured is not None:
        said += f", where training measures {measured.action_l1_rad:.4f} (allowed: {allowed:.2g} more)"
    if not found:
        return (
            f"{said}; no crop, prompt, statistics, cameras or action form mends it, so its weights are others: "
            "merge the checkpoint again"
        )
    steps = "; ".join(f"{item.change.cause}: {item.error:.4f} rad with {item.change.text}" for item in found)
    return f"{said}. Likely cause: {steps}. Mend {CONFIG_NAME} and {STATISTICS_FILE} there, or merge again"


if __name__ == "__main__":
    sys.exit(main())
