"""Scores a policy in simulation, in this process and without ROS: ``python -m lift.evaluate --model DIR``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crane_x7_vla.command import run_command
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.policies.pilot import Answer, Pilot
from crane_x7_vla.safety import SafetyLimits
from crane_x7_vla.types import Observation
from lift.expert import PickUpExpert
from lift.interface import CameraView, Simulator
from lift.make import DEFAULT_CAMERAS, SIMULATORS, find_task, make_env
from lift.rollout import Driver, EpisodeResult, ExpertDriver, rollout
from lift.tasks.pick_up import PICK_UP
from lift.wilson import wilson_interval

if TYPE_CHECKING:
    # Importing it loads torch, which the expert does without.
    from crane_x7_vla.policies.policy import Policy, PolicySpec


class PolicyDriver:
    """A policy behind the inference node's own pilots, one per environment: executor, safety check, holding."""

    def __init__(self, policy: Policy, *, num_envs: int, n_action_steps: int | None = None) -> None:
        """n_action_steps: rows executed of each chunk, the policy's own number by default; raises ConfigError."""
        self._policy = policy
        self._pilots = [Pilot(policy, limits=SafetyLimits(), n_action_steps=n_action_steps) for _ in range(num_envs)]
        self._past: list[deque[Observation]] = [deque(maxlen=policy.spec.history) for _ in range(num_envs)]

    @property
    def n_action_steps(self) -> int:
        """Rows executed of each chunk."""
        return self._pilots[0].n_action_steps

    @property
    def holds(self) -> int:
        """How many answers were refused or failed, so that an arm held its position."""
        return sum(pilot.counts.holds for pilot in self._pilots)

    @property
    def clamped(self) -> int:
        """How many answers were followed only after clamping."""
        return sum(pilot.counts.clamped for pilot in self._pilots)

    def begin(self, env: int, observation: Observation) -> None:
        """See ``Driver.begin``: as the node does, with the measured state as the target in force."""
        self._pilots[env].begin(observation.state, observation.stamp)
        self._past[env].clear()

    def targets(self, envs: Sequence[int], observations: Sequence[Observation], task_state: np.ndarray) -> np.ndarray:
        """See ``Driver.targets``; those that need a chunk are one batch."""
        asked: list[tuple[Pilot, Observation]] = []
        for env, observation in zip(envs, observations, strict=True):
            pilot = self._pilots[env]
            if pilot.needs_chunk(observation.stamp):
                known = dataclasses.replace(
                    observation, commanded=pilot.target(observation.stamp), past=tuple(self._past[env])
                )
                asked.append((pilot, known))
            if self._policy.spec.history:
                self._past[env].appendleft(dataclasses.replace(observation, commanded=None))
        for (pilot, observation), answer in zip(asked, self._ask(asked), strict=True):
            pilot.take(answer, observation.stamp)
        dt = self._policy.spec.dt
        return np.stack([self._pilots[e].target(o.stamp + dt) for e, o in zip(envs, observations, strict=True)])

    def _ask(self, asked: Sequence[tuple[Pilot, Observation]]) -> list[Answer]:
        """An answer that is not finite makes its arm hold, as on the real arm; whatever else fails is raised."""
        if not asked:
            return []
        observations = [observation for _, observation in asked]
        running = [pilot.running(observation.stamp) for pilot, observation in asked]
        try:
            chunks = self._policy.infer(observations, running=running)
        except FloatingPointError as error:
            if len(asked) == 1:
                return [Answer(observation=observations[0], failure=str(error))]
            return [answer for one in asked for answer in self._ask([one])]
        return [Answer(observation=o, chunk=chunk) for o, chunk in zip(observations, chunks, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is evaluated and how; see ``--help``. model: None is the scripted expert."""

    model: Path | None = None
    episodes: int = 100
    seed: int = 1_000_000
    num_envs: int = 1
    simulator: str = SIMULATORS[0]
    env_id: str = PICK_UP.env_id
    control_hz: float = 10.0
    max_steps: int = 80
    disturbance: float = 0.0
    draw_elsewhere: bool = False
    n_action_steps: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    device: str = "auto"
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("episodes", "num_envs", "max_steps", "n_action_steps", "image_width", "image_height"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{_flag(name)} is {number}; expected 1 or more")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; expected 0 or more")
        if self.model is None:
            for name in ("draw_elsewhere", "n_action_steps", "image_width", "image_height"):
                if getattr(self, name):
                    raise ConfigError(f"{_flag(name)} changes nothing for the expert; give it with --model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Results of a number of episodes; rate and interval in [0, 1], mean_steps over the successful episodes."""

    episodes: int
    successes: int
    rate: float
    interval_95: tuple[float, float]
    mean_steps: float | None

    @classmethod
    def of(cls, results: Sequence[EpisodeResult]) -> Score:
        """Counted; raises ValueError for no results."""
        steps = [result.steps for result in results if result.success]
        return cls(
            episodes=len(results),
            successes=len(steps),
            rate=len(steps) / len(results),
            interval_95=wilson_interval(len(steps), len(results)),
            mean_steps=float(np.mean(steps)) if steps else None,
        )

    def __str__(self) -> str:
        low, high = self.interval_95
        text = f"{self.successes} of {self.episodes} succeeded: {self.rate:.1%}, 95 % interval {low:.1%} to {high:.1%}"
        return text if self.mean_steps is None else f"{text}; {self.mean_steps:.1f} steps in the mean"


def camera_views(spec: PolicySpec, *, width: int | None, height: int | None) -> tuple[CameraView, ...]:
    """The cameras a policy needs, in the size that was asked for, else as in its config, else the simulator's own."""
    default = DEFAULT_CAMERAS[0]
    return tuple(
        CameraView(
            name=camera.name,
            width=width or camera.width or default.width,
            height=height or camera.height or default.height,
        )
        for camera in spec.cameras
    )


def check_fit(spec: PolicySpec, env: Simulator) -> None:
    """Raises ConfigError unless the policy is for this robot and this control rate."""
    if spec.robot.name != env.spec.robot.name:
        raise ConfigError(f"the policy is for {spec.robot.name}, but {env.spec.env_id} has {env.spec.robot.name}")
    if abs(spec.dt * env.spec.control_hz - 1) > 1e-6:
        raise ConfigError(
            f"control_hz is {env.spec.control_hz:g}, but the policy was trained at {1 / spec.dt:g} Hz; "
            f"type --control-hz {1 / spec.dt:g}"
        )


def evaluate(settings: Settings, console: Console) -> Score:
    """Play the episodes with a progress bar, print the score, write the report.

    Raises ConfigError and CheckpointError.
    """
    task = find_task(settings.env_id)
    if settings.output is not None:
        _check_writable(settings.output)
    policy: Policy | None = None
    cameras: tuple[CameraView, ...] = ()
    if settings.model is not None:
        policy = _load(settings.model, settings.device)
        cameras = camera_views(policy.spec, width=settings.image_width, height=settings.image_height)
    num_envs = min(settings.num_envs, settings.episodes)
    env = make_env(
        settings.simulator,
        settings.env_id,
        num_envs=num_envs,
        control_hz=settings.control_hz,
        cameras=cameras,
        max_steps=settings.max_steps,
        disturbance=settings.disturbance,
        draw_elsewhere=settings.draw_elsewhere,
    )
    try:
        if policy is None:
            driver = ExpertDriver(PickUpExpert(task))
        else:
            check_fit(policy.spec, env)
            driver = PolicyDriver(policy, num_envs=num_envs, n_action_steps=settings.n_action_steps)
        _say(
            console,
            f"{settings.model or 'the expert'} on {settings.env_id}, {settings.episodes} episodes from seed "
            f"{settings.seed}{', the object drawn elsewhere' * settings.draw_elsewhere}",
        )
        begin = time.monotonic()
        results = _play(env, driver, range(settings.seed, settings.seed + settings.episodes), console)
        seconds = time.monotonic() - begin
    finally:
        env.close()
    score = Score.of(results)
    _say(console, str(score))
    report = {**dataclasses.asdict(settings), **dataclasses.asdict(score), "seconds": round(seconds, 2)}
    if isinstance(driver, PolicyDriver):
        report |= {"n_action_steps": driver.n_action_steps, "holds": driver.holds, "clamped": driver.clamped}
        if driver.holds or driver.clamped:
            _say(console, f"answers refused or failed: {driver.holds}; followed after clamping: {driver.clamped}")
    if settings.output is not None:
        report["results"] = [dataclasses.asdict(result) for result in sorted(results, key=lambda r: r.seed)]
        settings.output.write_text(json.dumps(report, indent=2, default=str) + "\n")
        _say(console, f"written to {settings.output}")
    return score


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = vars(_parser().parse_args(argv))
    arguments.pop("expert")

    def command() -> int:
        evaluate(Settings(**arguments), Console())
        return 0

    return run_command(command)


def _load(model: Path, device: str) -> Policy:
    from crane_x7_vla.policies.policy import load_policy

    return load_policy(model.expanduser(), device=device)


def _check_writable(output: Path) -> None:
    """Raises ConfigError now for a file that could not be written when all episodes have been played."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        existed = output.exists()
        output.open("ab").close()
        if not existed:
            output.unlink()
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be written ({error.strerror}); name another file") from error


def _play(env: Simulator, driver: Driver, seeds: Sequence[int], console: Console) -> list[EpisodeResult]:
    results: list[EpisodeResult] = []
    columns = (
        TextColumn("episodes"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[successes]} succeeded"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(seeds), successes=0)
        for result in rollout(env, driver, seeds):
            results.append(result)
            progress.update(bar, advance=1, successes=sum(r.success for r in results))
    return results


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lift.evaluate",
        description="Success rate of a policy, or of the scripted expert, in simulated episodes.",
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", type=Path, metavar="DIR", help="merged model or checkpoint-N")
    who.add_argument("--expert", action="store_true", help="the scripted expert, who sees the object's true pose")

    def add(name: str, kind: type, help_text: str) -> None:
        default = Settings.__dataclass_fields__[name].default
        text = help_text if default is None else f"{help_text} (default: {default})"
        parser.add_argument(_flag(name), type=kind, default=default, help=text)

    add("episodes", int, "number of episodes")
    add("seed", int, "seed of the first episode, the next has seed + 1; far from those of demonstrations")
    add("num_envs", int, "environments at once; those that need a chunk are asked about in one batch")
    add("simulator", str, "simulator")
    add("env_id", str, "task")
    add("control_hz", float, "control rate; must be that of the policy")
    add("max_steps", int, "control periods after which an episode is truncated")
    add("disturbance", float, "noise on the executed targets, rad")
    parser.add_argument(
        "--draw-elsewhere", action="store_true", help="show the object where it is not; a policy that looks then fails"
    )
    add("n_action_steps", int, "rows executed of each chunk; by default the policy's own number")
    add("image_width", int, "pixels; by default as in the policy's config, else the simulator's own")
    add("image_height", int, "pixels; by default as in the policy's config, else the simulator's own")
    add("device", str, "cpu, cuda, …; auto takes a GPU where there is one")
    add("output", Path, "JSON file for the score and every episode")
    return parser


if __name__ == "__main__":
    sys.exit(main())
