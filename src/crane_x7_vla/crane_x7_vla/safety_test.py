from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from crane_x7_vla import kinematics, safety
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.robot import CRANE_X7
from crane_x7_vla.safety import SafetyLimits, Verdict, check, stale
from crane_x7_vla.types import ActionChunk, Observation

DT = 0.1
LIMITS = SafetyLimits()
ARM = list(CRANE_X7.arm_indices)


def pose(x: float = 0.25, y: float = 0.0, z: float = 0.1, gripper: float = 0.6) -> np.ndarray:
    """A pose with the fingers pointing down at (x, y, z)."""
    arm = kinematics.reach_down(np.array([x, y, z]), 0.0)
    assert arm is not None
    return np.append(arm, gripper).astype(np.float32)


def judge(
    actions: np.ndarray,
    *,
    current: np.ndarray | None = None,
    state: np.ndarray | None = None,
    age: float = 0.0,
    late: float = 0.0,
    limits: SafetyLimits = LIMITS,
) -> Verdict:
    """check() of a chunk stamped 5.0 s that follows ``current``; ``late`` s of the first period are gone."""
    current = pose() if current is None else current
    state = pose() if state is None else state
    now = 5.0 + late
    return check(
        ActionChunk(actions=np.atleast_2d(actions).astype(np.float32), dt=DT, stamp=5.0),
        Observation(images={}, state=state, instruction="", stamp=now - age),
        now=now,
        robot=CRANE_X7,
        limits=limits,
        current=current,
    )


def rows(verdict: Verdict) -> np.ndarray:
    assert verdict.chunk is not None, verdict.reasons
    return verdict.chunk.actions


def test_a_good_chunk_passes_bit_for_bit() -> None:
    actions = np.stack([pose(x=0.25 + 0.01 * i, z=0.1 - 0.01 * i, gripper=0.6 - 0.04 * i) for i in range(1, 8)])
    verdict = judge(actions)
    assert verdict.reasons == ()
    np.testing.assert_array_equal(rows(verdict), actions)
    assert verdict.chunk is not None
    assert (verdict.chunk.dt, verdict.chunk.stamp) == (DT, 5.0)


def test_arguments_are_not_modified() -> None:
    actions = np.full((2, 8), 3.0, np.float32)
    current = pose()
    kept = current.copy()
    judge(actions, current=current, limits=dataclasses.replace(LIMITS, max_jump=9.0))
    np.testing.assert_array_equal(actions, np.full((2, 8), 3.0, np.float32))
    np.testing.assert_array_equal(current, kept)


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "text"), [(0.51, "0.51 s old, more than 0.5 s"), (-0.6, "0.60 s in the future"), (float("nan"), "nan")]
)
def test_observation_of_another_time_is_refused(age: float, text: str) -> None:
    verdict = judge(pose(), age=age)
    assert verdict.chunk is None
    assert text in verdict.reasons[0]


@pytest.mark.parametrize("age", [0.0, 0.49, -0.4])
def test_fresh_observation_is_accepted(age: float) -> None:
    assert judge(pose(), age=age).chunk is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("joint", [0, 6, 7])
def test_what_is_not_finite_is_refused_and_named(value: float, joint: int) -> None:
    actions = np.stack([pose()] * 4)
    actions[3, joint] = value
    verdict = judge(actions)
    assert verdict.chunk is None
    assert verdict.reasons == (f"the chunk is not finite for {CRANE_X7.joint_names[joint]}",)
    bad = pose()
    bad[joint] = value
    assert "the state is not finite" in judge(pose(), state=bad).reasons[0]
    assert judge(pose(), state=bad).chunk is None
    assert "the target in force is not finite" in judge(pose(), current=bad).reasons[0]
    assert judge(pose(), current=bad).chunk is None


@pytest.mark.parametrize("size", [1, 7, 9, 32])
def test_wrong_size_is_refused_and_both_sizes_named(size: int) -> None:
    verdict = judge(np.zeros((2, size)))
    assert verdict.chunk is None
    assert verdict.reasons == (f"the chunk has {size} joints, crane_x7 has 8",)
    assert f"the state has {size} joints" in judge(pose(), state=np.zeros(size, np.float32)).reasons[0]
    assert f"the target in force has {size} joints" in judge(pose(), current=np.zeros(size)).reasons[0]


@pytest.mark.parametrize("joint", ARM)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_jump_of_an_arm_joint_is_refused_and_named(joint: int, sign: int) -> None:
    current = np.zeros(8, np.float32)
    current[3] = -1.0
    target = current.copy()
    target[joint] += sign * 0.61
    verdict = judge(target, current=current)
    assert verdict.chunk is None
    assert "0.61 rad from the target in force" in verdict.reasons[0]
    assert CRANE_X7.joint_names[joint] in verdict.reasons[0]


def test_the_gripper_may_snap_shut_unless_everything_is_to_be_slow() -> None:
    shut, wide = pose(gripper=0.0), pose(gripper=1.2)
    verdict = judge(shut, current=wide, state=wide)
    assert verdict.reasons == ()
    np.testing.assert_array_equal(rows(verdict)[0], shut)
    slow = judge(shut, current=wide, state=wide, limits=dataclasses.replace(LIMITS, velocity_scale=0.5))
    assert rows(slow)[0, 7] == pytest.approx(1.2 - 0.5 * 4.817 * DT, abs=1e-6)
    np.testing.assert_array_equal(rows(slow)[0, :7], shut[:7])
    assert slow.reasons == ("slowed down crane_x7_gripper_finger_a_joint to 0.5 of the maximum speed",)


# -- joint limits -----------------------------------------------------------------------------------------------------


def limit_pose(joint: int, upper: bool) -> np.ndarray:
    """An upright pose with one joint at its limit as float32 stores it."""
    arm = np.zeros(8, np.float32)
    arm[joint] = np.float32((CRANE_X7.upper if upper else CRANE_X7.lower)[joint])
    return arm


@pytest.mark.parametrize("joint", range(8))
@pytest.mark.parametrize("upper", [True, False])
def test_one_ulp_beyond_a_limit_is_clamped_without_a_word(joint: int, upper: bool) -> None:
    at_limit = limit_pose(joint, upper)
    limits = dataclasses.replace(LIMITS, workspace_lower=(-2.0, -2.0, -2.0), workspace_upper=(2.0, 2.0, 2.0))
    beyond = at_limit.copy()
    beyond[joint] = np.nextafter(at_limit[joint], np.float32(np.inf if upper else -np.inf))
    assert beyond[joint] != at_limit[joint]
    for actions in (at_limit, beyond):
        verdict = judge(actions, current=at_limit, state=beyond, limits=limits)
        assert verdict.reasons == ()
        np.testing.assert_array_equal(rows(verdict)[0], at_limit)
    # Measured or commanded a hair beyond the limit is no reason to refuse (the elbow rests at its limit 0).
    assert judge(at_limit, current=beyond, state=beyond, limits=limits).reasons == ()


def test_far_beyond_a_limit_is_clamped_and_reported() -> None:
    current = limit_pose(3, True)
    current[1] = 0.3
    target = current.copy()
    target[3] = 0.25
    verdict = judge(target, current=current)
    np.testing.assert_array_equal(rows(verdict)[0], current)
    assert verdict.reasons == (f"clamped to the limits of {CRANE_X7.joint_names[3]} (by up to 0.250 rad)",)


# -- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_every_row_keeps_the_speed_from_the_target_in_force(scale: float) -> None:
    rng = np.random.default_rng(0)
    limits = dataclasses.replace(LIMITS, velocity_scale=scale, max_jump=9.0)
    reach = scale * np.array(CRANE_X7.max_velocity) * DT
    if scale == 1.0:
        reach[CRANE_X7.gripper_index] = np.inf
    for _ in range(50):
        actions = rng.uniform(CRANE_X7.lower, CRANE_X7.upper, (6, 8)).astype(np.float32)
        current = rng.uniform(CRANE_X7.lower, CRANE_X7.upper).astype(np.float32)
        result = rows(judge(actions, current=current, limits=limits)).astype(np.float64)
        moves = np.diff(np.vstack([current, result]), axis=0)
        assert np.all(np.abs(moves) <= reach + 1e-6)


def test_a_slowed_arm_keeps_its_direction_and_catches_up() -> None:
    current, goal = pose(y=0.0), pose(y=0.1)
    limits = dataclasses.replace(LIMITS, velocity_scale=0.2)
    verdict = judge(np.stack([goal] * 20), current=current, limits=limits)
    result = rows(verdict)
    move = (result[0] - current)[ARM]
    line = (goal - current)[ARM]
    np.testing.assert_allclose(move / np.linalg.norm(move), line / np.linalg.norm(line), atol=1e-5)
    np.testing.assert_allclose(result[-1], goal, atol=1e-6)
    assert "of the maximum speed" in verdict.reasons[-1]


def test_the_first_row_has_only_what_is_left_of_its_period() -> None:
    current = pose()
    target = current.copy()
    target[0] += 0.3
    first = rows(judge(np.stack([target, target]), current=current, late=0.08))
    assert first[0, 0] - current[0] == pytest.approx(4.817 * 0.02, abs=1e-5)
    assert first[1, 0] == target[0]
    gone = rows(judge(np.stack([target, target]), current=current, late=0.15))
    np.testing.assert_array_equal(gone[0], current)


def test_exactly_the_allowed_speed_is_not_reported() -> None:
    target = pose(gripper=0.6)
    target[0] = np.float32(4.817 * DT)
    verdict = judge(target, current=pose())
    assert verdict.reasons == ()


# -- workspace --------------------------------------------------------------------------------------------------------


def test_below_the_table_is_clamped_to_it_and_the_motion_along_it_goes_on() -> None:
    current = pose(x=0.22, z=0.02)
    verdict = judge(np.stack([pose(x=0.23, z=0.0), pose(x=0.25, z=-0.03), pose(x=0.27, z=-0.03)]), current=current)
    tips = np.array([kinematics.tip(row[:7]) for row in rows(verdict)])
    assert np.all(tips[:, 2] > -0.0011)
    np.testing.assert_allclose(tips[:, 0], [0.23, 0.25, 0.27], atol=4e-3)
    assert any("fingers or wrist up to 30 mm outside" in reason for reason in verdict.reasons)


def outside(row: np.ndarray) -> float:
    low, high = np.array(LIMITS.workspace_lower), np.array(LIMITS.workspace_upper)
    return safety._outside(row.astype(np.float64), CRANE_X7, low, high)


def test_fingers_do_not_open_into_the_table_when_the_arm_has_no_time_to_give_way() -> None:
    # Horizontal, 19 mm above the table, one finger above the other.
    current = np.array([0, -1.287, 0, -0.969, 0, 0.709, 0, 0], np.float32)
    opened = current.copy()
    opened[7] = 1.2
    assert outside(current) == 0
    assert outside(opened) > 0.03
    verdict = judge(np.stack([opened] * 3), current=current, late=0.08)
    assert [row for row in rows(verdict) if outside(row) > 1.1e-3] == []
    assert "clamped to the workspace" in verdict.reasons[0]


@pytest.mark.parametrize("opening", [0.2, 0.4])
def test_tips_of_open_fingers_stay_above_the_table_too(opening: float) -> None:
    # The hand leans, so that one finger is lower than the middle of both.
    current = pose(x=0.22, z=0.04, gripper=opening)
    current[5] += 0.4
    lean = np.array([0, -0.04, 0, 0, 0, 0, 0, 0], np.float32)
    chunk = np.stack([current + k * lean for k in range(1, 8)])
    assert kinematics.finger_tips(chunk[-1, :7], opening)[:, 2].min() < kinematics.tip(chunk[-1, :7])[2] - 0.002
    assert kinematics.finger_tips(chunk[-1, :7], opening)[:, 2].min() < -0.01
    verdict = judge(chunk, current=current, state=current)
    for row in rows(verdict):
        assert kinematics.finger_tips(row[:7], float(row[7]))[:, 2].min() > -0.0011
    assert any("fingers or wrist up to" in reason for reason in verdict.reasons)


def test_the_wrist_stays_above_the_table_when_the_fingers_do() -> None:
    current = np.array([0.0, -1.15, 0.0, -1.15, 0.0, 1.5, 0.0, 0.0], np.float32)
    lean = np.array([0, -0.02, 0, -0.02, 0, 0, 0, 0], np.float32)
    chunk = np.stack([current + k * lean for k in range(1, 8)])
    assert kinematics.wrist(chunk[-1, :7])[2] < -0.02
    assert kinematics.tip(chunk[-1, :7])[2] > 0
    for row in rows(judge(chunk, current=current, state=current)):
        assert kinematics.wrist(row[:7])[2] > -0.0011


def test_a_robot_without_kinematics_is_refused() -> None:
    other = dataclasses.replace(CRANE_X7, name="longer_arm")
    verdict = check(
        ActionChunk(actions=pose()[None], dt=DT, stamp=5.0),
        Observation(images={}, state=pose(), instruction="", stamp=5.0),
        now=5.0,
        robot=other,
        limits=LIMITS,
        current=pose(),
    )
    assert verdict.chunk is None
    assert verdict.reasons == (
        "whether longer_arm stays in its workspace cannot be judged: kinematics.py is of crane_x7",
    )


def test_outside_the_box_is_clamped_to_its_face() -> None:
    limits = dataclasses.replace(LIMITS, workspace_upper=(0.3, 0.1, 0.9))
    result = rows(judge(pose(x=0.29, y=0.13), current=pose(x=0.28, y=0.08), limits=limits))
    assert kinematics.tip(result[0, :7])[1] == pytest.approx(0.1, abs=2e-3)


def test_an_arm_that_starts_outside_may_come_back_but_not_go_farther() -> None:
    current = pose(z=-0.03)
    back = rows(judge(np.stack([pose(z=-0.02), pose(z=0.0), pose(z=0.03)]), current=current))
    heights = [kinematics.tip(row[:7])[2] for row in back]
    assert heights[-1] == pytest.approx(0.03, abs=1e-3)
    deeper = rows(judge(np.stack([pose(z=-0.05), pose(z=-0.08)]), current=current))
    assert all(kinematics.tip(row[:7])[2] >= -0.0311 for row in deeper)


def test_random_chunks_never_leave_limits_speed_or_workspace() -> None:
    rng = np.random.default_rng(1)
    reach = np.array(CRANE_X7.max_velocity) * DT
    reach[CRANE_X7.gripper_index] = np.inf
    for late in rng.uniform(0, DT, 60):
        current = pose(*rng.uniform([0.2, -0.1, 0.005], [0.3, 0.1, 0.15]))
        actions = (current + np.cumsum(rng.normal(0, 0.3, (6, 8)), axis=0)).astype(np.float32)
        verdict = judge(actions, current=current, late=late, limits=dataclasses.replace(LIMITS, max_jump=9.0))
        result = rows(verdict)
        assert np.all(result == CRANE_X7.clamp(result))
        assert np.all(np.abs(np.diff(np.vstack([current, result]), axis=0)) <= reach + 1e-6)
        for row in result:
            assert outside(row) <= max(1.1e-3, outside(current))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_age": 0.0}, "max_age"),
        ({"max_age": float("nan")}, "max_age"),
        ({"velocity_scale": 0.0}, "velocity_scale"),
        ({"velocity_scale": 1.5}, "velocity_scale"),
        ({"max_jump": -1.0}, "max_jump"),
        ({"workspace_lower": (0.0, 0.0)}, "x, y, z, got 2"),
        ({"workspace_lower": (0.0, 0.0, 1.0)}, "must be below"),
    ],
)
def test_senseless_settings_are_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        dataclasses.replace(LIMITS, **change)  # pyright: ignore[reportArgumentType]


def test_stale_says_how_old() -> None:
    assert stale(1.0, 1.4, 0.5) is None
    assert stale(1.0, 1.6, 0.5) == "0.60 s old, more than 0.5 s"
    assert "use_sim_time" in str(stale(10.0, 1.0, 0.5))
