"""Presses the recorder's buttons where nobody sits at a keyboard: ``unattended.Unattended`` in ROS."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Protocol

from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from crane_x7_log.recorder import RefusedError
from crane_x7_log.status import Status
from crane_x7_log.unattended import Unattended, UnattendedConfig, Wish
from crane_x7_vla.errors import USER_ERRORS, DataError
from crane_x7_vla.nodes.messages import latched_qos
from crane_x7_vla.nodes.running import SuiteNode
from crane_x7_vla.protocol import EPISODE_END, NEXT_SCENE

logger = logging.getLogger(__name__)

# How long a simulator may take for the next scene, s.
_RESET_S = 30.0
_TELL_S = 5.0


class Start(Protocol):
    """Starts the recorder. seed: of the scene, None where there is none. afresh: see ``Recorder.start``."""

    def __call__(self, seed: int | None, *, afresh: bool) -> str: ...


class Operator:
    """Ends ``node`` when all episodes are recorded, or when that fails."""

    def __init__(
        self,
        node: SuiteNode,
        config: UnattendedConfig,
        *,
        start: Start,
        stop: Callable[[], str],
        mark_success: Callable[[bool], str],
        has_all_since: Callable[[int], bool],
    ) -> None:
        """start, stop, mark_success: the recorder's, and raise as it does.

        has_all_since: whether every source has reached a stamp, ns.
        """
        self._node = node
        self._config = config
        self._unattended = Unattended(config)
        self._start, self._stop, self._mark, self._has_all_since = start, stop, mark_success, has_all_since
        self._client = node.create_client(Trigger, NEXT_SCENE)
        node.create_subscription(String, EPISODE_END, self._on_episode_end, latched_qos())
        self._reset_asked_at: float | None = None
        self._scene: tuple[int, int] | None = None
        self._scene_is_new = False
        self._success: bool | None = None
        self._told_at: float | None = None

    @property
    def waits_for(self) -> str | None:
        """What of a simulator in lockstep has to come before the next episode."""
        return self._unattended.waits_for

    def tick(self, status: Status, now: float) -> None:
        """Several times a second. status: of this moment. now: monotonic, s."""
        try:
            if self._reset_asked_at is not None and now - self._reset_asked_at > _RESET_S:
                raise DataError(f"no new scene within {_RESET_S:g} s of {NEXT_SCENE}; does the simulator hang?")
            if self._scene_is_new and self._scene is not None and self._has_all_since(self._scene[1]):
                self._scene_is_new = False
                self._reset_asked_at = None
                wish = self._unattended.on_reset(status)
            else:
                wish = self._unattended.next(status, now, resettable=self._client.service_is_ready())
            self._act(wish, now)
        except (RefusedError, *USER_ERRORS) as error:
            self._node.fail(DataError(str(error)))
            return
        self._tell(now)

    def _act(self, wish: Wish | None, now: float) -> None:
        if wish is Wish.RESET:
            self._reset_asked_at = now
            self._client.call_async(Trigger.Request()).add_done_callback(self._on_next_scene)
        elif wish is Wish.START:
            self._success = None
            number = self._unattended.saved + 1
            seed = None if self._scene is None else self._scene[0]
            if self._config.lockstep and seed is not None:
                seed += 1  # the scene that is over is followed by the next
            self._start(seed, afresh=self._config.lockstep)
            logger.info("episode %d of %d begins", number, self._config.episodes)
        elif wish is Wish.STOP:
            self._end_episode()
        elif wish is Wish.END:
            logger.info("all %d episodes are recorded", self._config.episodes)
            self._node.finish()

    def _end_episode(self) -> None:
        try:
            if self._success is not None:
                self._mark(self._success)
            logger.info("%s", self._stop())
        except RefusedError as error:  # somebody else has just stopped it
            logger.info("%s", error)

    def _tell(self, now: float) -> None:
        """Count down to the next episode, for the person who puts things back."""
        left = self._unattended.seconds_to_start(now)
        if left <= 0 or self._client.service_is_ready():
            self._told_at = None
        elif self._told_at is None or now - self._told_at >= _TELL_S:
            self._told_at = now
            logger.info("the next episode begins in %.0f s; put everything back in its place", left)

    def _on_next_scene(self, future: Future) -> None:
        answer = future.result()
        try:
            if answer is None or not answer.success:
                raise DataError("no answer" if answer is None else answer.message)
            self._scene = _scene_of(answer.message)
        except DataError as error:
            self._node.fail(DataError(f"{NEXT_SCENE}: {error}"))
            return
        self._scene_is_new = True

    def _on_episode_end(self, message: String) -> None:
        """The simulator tells how its episode ended; one that ended before the present scene is told to latecomers."""
        end = json.loads(message.data)
        if self._is_resetting or (self._scene is None and not self._config.lockstep):
            return
        began = 0 if self._scene is None else self._scene[1]
        if int(end["stamp_ns"]) < began:
            return
        self._scene = (int(end["seed"]), began)  # somebody may have chosen another by lift/reset
        if self._config.lockstep:  # over before a recorder that came late was connected
            self._scene_is_new, self._reset_asked_at = False, None
        if self._unattended.on_task_end():
            self._success = bool(end["success"])

    @property
    def _is_resetting(self) -> bool:
        """What ends now is the scene that shall not be any more."""
        return self._reset_asked_at is not None and not self._scene_is_new


def _scene_of(answer: str) -> tuple[int, int]:
    """Seed and first stamp, ns. Raises DataError when ``answer`` does not say them."""
    try:
        told = json.loads(answer)
        return int(told["seed"]), int(told["stamp_ns"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected JSON with seed and stamp_ns, got '{answer}'") from error
