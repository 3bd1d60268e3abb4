from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crane_x7_vla.config.base import CameraConfig
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.policies.policy import PolicySpec
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.types import ActionChunk, Observation
from lift import evaluate as command
from lift import make_env
from lift.evaluate import PolicyDriver, Score, camera_views, check_fit, main
from lift.expert import PickUpExpert
from lift.interface import Simulator
from lift.rollout import EpisodeResult, ExpertDriver, rollout
from lift.tasks.pick_up import PICK_UP

HORIZON = 4


def spec(*, dt: float = 0.1, history: int = 0, cameras: tuple[CameraConfig, ...] = ()) -> PolicySpec:
    return PolicySpec(
        robot=CRANE_X7,
        cameras=cameras,
        action_horizon=HORIZON,
        n_action_steps=HORIZON,
        dt=dt,
        history=history,
        action_form="relative",
        action_source="commanded",
        backend="fake",
    )


class FakePolicy:
    """Answers each observation with what ``answer`` makes of it; keeps every batch."""

    def __init__(self, answer: Callable[[Observation], np.ndarray], *, history: int = 0) -> None:
        self.spec = spec(history=history)
        self.answer = answer
        self.batches: list[list[Observation]] = []

    def infer(
        self, observations: Sequence[Observation], *, running: Sequence[Any] | None = None, rng: Any = None
    ) -> list[ActionChunk]:
        assert running is not None
        assert len(running) == len(observations)
        self.batches.append(list(observations))
        return [ActionChunk(actions=self.answer(o), dt=self.spec.dt, stamp=o.stamp) for o in observations]


def stay(observation: Observation) -> np.ndarray:
    assert observation.commanded is not None
    return np.tile(observation.commanded, (HORIZON, 1))


@pytest.fixture
def make() -> Iterator[Callable[..., Simulator]]:
    made: list[Simulator] = []

    def make_one(**settings: Any) -> Simulator:
        made.append(make_env("mujoco", PICK_UP.env_id, cameras=(), **settings))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def test_a_policy_that_knows_the_experts_commands_does_as_well(make: Callable[..., Simulator]) -> None:
    """Chunks, pilot and simulator together change nothing of what a policy wants."""
    commands: list[np.ndarray] = []

    class Scribe(ExpertDriver):
        def targets(
            self, envs: Sequence[int], observations: Sequence[Observation], task_state: np.ndarray
        ) -> np.ndarray:
            commands.append(super().targets(envs, observations, task_state))
            return commands[-1]

    (expected,) = rollout(make(), Scribe(PickUpExpert(PICK_UP)), [1_000_007])
    assert expected.success
    rows = np.concatenate([*commands, *[commands[-1]] * HORIZON])

    def recall(observation: Observation) -> np.ndarray:
        step = round(observation.stamp * 10)
        return rows[step : step + HORIZON]

    policy = FakePolicy(recall)
    driver = PolicyDriver(policy, num_envs=1)
    assert list(rollout(make(), driver, [1_000_007])) == [expected]
    assert [round(batch[0].stamp * 10) for batch in policy.batches] == list(range(0, expected.steps, HORIZON))
    assert driver.holds == 0
    assert driver.clamped == 0


def test_environments_are_asked_about_in_one_batch(make: Callable[..., Simulator]) -> None:
    policy = FakePolicy(stay)
    list(rollout(make(num_envs=3, max_steps=6), PolicyDriver(policy, num_envs=3, n_action_steps=3), range(5)))
    assert [len(batch) for batch in policy.batches] == [3, 3, 2, 2]


def test_a_policy_is_told_the_target_in_force_and_its_past(make: Callable[..., Simulator]) -> None:
    policy = FakePolicy(lambda o: np.tile(o.state + np.float32(0.01), (HORIZON, 1)), history=2)
    list(rollout(make(max_steps=5), PolicyDriver(policy, num_envs=1, n_action_steps=1), [1, 2]))
    seen = [observation for batch in policy.batches for observation in batch]
    assert len(seen) == 10
    for first in (0, 5):
        # As a controller starts: what is measured is the target in force.
        np.testing.assert_array_equal(seen[first].commanded, seen[first].state)
        assert [len(o.past) for o in seen[first : first + 5]] == [0, 1, 2, 2, 2]
    for before, now in pairwise(seen[:5]):
        np.testing.assert_array_equal(now.commanded, before.state + np.float32(0.01))
        assert now.past[0].stamp == before.stamp
        np.testing.assert_array_equal(now.past[0].state, before.state)
    assert [round(past.stamp * 10) for past in seen[4].past] == [3, 2]


def test_what_is_not_finite_holds_its_own_arm_only(make: Callable[..., Simulator]) -> None:
    env = make(num_envs=2, max_steps=8)
    env.reset(np.array([1, 2]))
    second = float(env.task_state[1, 0])

    class Broken(FakePolicy):
        def infer(
            self, observations: Sequence[Observation], *, running: Sequence[Any] | None = None, rng: Any = None
        ) -> list[ActionChunk]:
            if any(abs(float(o.state[0]) - self.broken) < 0.02 for o in observations):
                raise FloatingPointError("the policy predicted NaN or infinity for all joints")
            return super().infer(observations, running=running)

        broken = 0.0

    policy = Broken(lambda o: np.tile(o.state, (HORIZON, 1)) + np.float32(0.05))
    policy.broken = float(env.reset(np.array([1, 2]))[1].state[0])
    driver = PolicyDriver(policy, num_envs=2)
    results = list(rollout(env, driver, [1, 2]))
    assert {result.truncated for result in results} == {True}
    assert driver.holds == 8
    assert all(len(batch) == 1 for batch in policy.batches)
    assert abs(float(env.task_state[1, 0]) - second) < 1e-3


def test_a_bug_in_a_policy_is_not_a_score(make: Callable[..., Simulator]) -> None:
    def fail(_: Observation) -> np.ndarray:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        list(rollout(make(), PolicyDriver(FakePolicy(fail), num_envs=1), [1]))


def test_too_many_action_steps_are_an_error() -> None:
    with pytest.raises(ConfigError, match=f"n_action_steps is 5, but the policy predicts {HORIZON}"):
        PolicyDriver(FakePolicy(stay), num_envs=1, n_action_steps=5)


def test_another_rate_names_both(make: Callable[..., Simulator]) -> None:
    check_fit(spec(), make())
    with pytest.raises(
        ConfigError, match="control_hz is 10, but the policy was trained at 20 Hz; type --control-hz 20"
    ):
        check_fit(spec(dt=0.05), make())


def test_cameras_are_those_of_the_policy() -> None:
    cameras = (CameraConfig(name="wrist"), CameraConfig(name="primary", width=64, height=48))
    sizes = [(v.name, v.width, v.height) for v in camera_views(spec(cameras=cameras), width=None, height=None)]
    assert sizes == [("wrist", 128, 128), ("primary", 64, 48)]
    sizes = [(v.width, v.height) for v in camera_views(spec(cameras=cameras), width=320, height=240)]
    assert sizes == [(320, 240), (320, 240)]


def test_a_score_says_rate_interval_and_steps() -> None:
    def result(success: bool, steps: int) -> EpisodeResult:
        return EpisodeResult(seed=0, success=success, terminated=success, truncated=not success, steps=steps)

    score = Score.of([result(True, 30), result(True, 33), result(False, 80), result(True, 36)])
    assert str(score) == "3 of 4 succeeded: 75.0%, 95 % interval 30.1% to 95.4%; 33.0 steps in the mean"
    assert Score.of([result(False, 80)]).mean_steps is None
    assert str(Score.of([result(False, 80)])) == "0 of 1 succeeded: 0.0%, 95 % interval 0.0% to 79.3%"


def test_the_command_scores_the_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "expert.json"
    assert main(["--expert", "--episodes", "2", "--num-envs", "2", "--seed", "7", "--output", str(output)]) == 0
    assert "2 of 2 succeeded: 100.0%" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["model"] is None
    assert report["successes"] == 2
    assert [result["seed"] for result in report["results"]] == [7, 8]
    assert all(result["success"] for result in report["results"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with random weights."""
    import torch

    from crane_x7_vla.backends import backend_class
    from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig
    from crane_x7_vla.config.yaml import dump_config
    from crane_x7_vla.data.statistics import compute_statistics, to_json

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    states = rng.uniform(-0.4, 0.4, (50, 8)).astype(np.float32)
    rows = rng.uniform(-0.05, 0.05, (50, 8)).astype(np.float32)
    statistics = compute_statistics(states, rows, num_trajectories=1, fingerprint="test")
    tiny = OpenVLAOFTConfig.tiny()
    config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, action_source="commanded"))
    directory = tmp_path_factory.mktemp("model")
    backend = backend_class("openvla-oft")(config, robot=CRANE_X7, statistics=statistics)
    backend.save(backend.build(), directory)
    (directory / "config.yaml").write_text(dump_config(config))
    (directory / "dataset_statistics.json").write_text(to_json(statistics))
    return directory


def test_the_command_scores_a_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "score.json"
    arguments = ["--model", str(model), "--episodes", "3", "--num-envs", "2", "--max-steps", "5", "--device", "cpu"]
    sizes = ["--image-width", "48", "--image-height", "48"]
    assert main([*arguments, *sizes, "--draw-elsewhere", "--output", str(output)]) == 0
    assert "0 of 3 succeeded: 0.0%, 95 % interval 0.0% to 56.1%" in capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["model"] == str(model)
    assert report["n_action_steps"] == 4
    assert report["draw_elsewhere"] is True
    assert report["mean_steps"] is None
    assert [(r["seed"], r["steps"], r["truncated"]) for r in report["results"]] == [
        (1_000_000 + i, 5, True) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "/nowhere"], "error: Failed to load VLA model: /nowhere does not exist"),
        (["--expert", "--episodes", "0"], "error: --episodes is 0; expected 1 or more"),
        (["--expert", "--num-envs", "-2"], "error: --num-envs is -2; expected 1 or more"),
        (["--expert", "--seed", "-1"], "error: --seed is -1; expected 0 or more"),
        (["--expert", "--draw-elsewhere"], "error: --draw-elsewhere changes nothing for the expert"),
        (["--expert", "--env-id", "Juggle"], "error: unknown environment 'Juggle'; known: PickUp-CRANE-X7"),
        (["--expert", "--control-hz", "30"], "error: control_hz is 30, but a control period"),
        (
            ["--expert", "--output", "/dev/null/a.json"],
            "error: --output: /dev/null/a.json cannot be written (File exists)",
        ),
        (
            ["--expert", "--output", "/tmp"],
            "error: --output: /tmp cannot be written (Is a directory); name another file",
        ),
        (["--model", "/nowhere", "--image-width", "0"], "error: --image-width is 0; expected 1 or more"),
        (["--model", "/nowhere", "--n-action-steps", "0"], "error: --n-action-steps is 0; expected 1 or more"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_model_of_another_rate_is_refused_before_anything_runs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(model), "--control-hz", "20", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("error: control_hz is 20, but the policy was trained at 10 Hz")


def test_an_interrupted_run_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_play", interrupt)
    assert main(["--expert"]) == 130


def test_the_expert_is_scored_without_torch_and_without_rendering() -> None:
    code = """
import sys
from lift.evaluate import main
assert main(['--expert', '--episodes', '1', '--max-steps', '2']) == 0
print('torch' in sys.modules)
"""
    environment = {**os.environ, "MUJOCO_GL": "invalid"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "False"
