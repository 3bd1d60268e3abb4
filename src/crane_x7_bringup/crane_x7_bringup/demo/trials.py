"""Try a policy through ROS: simulated arm and inference node, one episode a start, success judged by the simulator.

python -m crane_x7_bringup.demo.trials --model outputs/demo_merged --episodes 100
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sensor_msgs.msg import Image

from crane_x7_bringup.demo.journal import append_entry, read_journal
from crane_x7_bringup.demo.worker import run_worker, running
from crane_x7_bringup.profiles import INSTRUCTION, configured, find_profile
from crane_x7_bringup.session import Session
from crane_x7_vla.data.episode import encode_jpeg
from crane_x7_vla.nodes.messages import image_to_rgb, sensor_qos, stamp_ns
from lift.nodes.topics import camera_topic

FRAMES = 7
FIRST_SEED = 1_000_000
"""Far from the seeds of demonstrations, so that every start is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """model: a merged directory or a checkpoint. draw_elsewhere: show the object where it is not. frames: folder that
    gets a strip of pictures per trial. journal: one line per trial. log_dir: gets the nodes' logs."""

    model: Path
    instruction: str
    episodes: int
    first_seed: int
    stride: int
    draw_elsewhere: bool
    journal: Path
    frames: Path
    log_dir: Path


class _Film:
    """The primary camera's pictures of the present episode."""

    def __init__(self, session: Session) -> None:
        self._messages: list[Image] = []
        session.subscribe(Image, camera_topic("primary"), self._messages.append, sensor_qos(lockstep=True))

    def strip(self, begin_ns: int) -> np.ndarray:
        """uint8 [H, FRAMES * W, 3]: pictures evenly spaced over the episode that began at ``begin_ns``."""
        shown = [message for message in self._messages if stamp_ns(message.header) >= begin_ns]
        self._messages.clear()
        if not shown:
            raise TimeoutError(f"no picture came on {camera_topic('primary')}")
        chosen = [shown[round(i)] for i in np.linspace(0, len(shown) - 1, FRAMES)]
        return np.concatenate([image_to_rgb(message) for message in chosen], axis=1)


def run_trials(wanted: Trials) -> None:
    """One trial a seed; those that the journal has are not repeated."""
    done = {int(entry["seed"]) for entry in read_journal(wanted.journal)}
    seeds = [wanted.first_seed + i * wanted.stride for i in range(wanted.episodes)]
    seeds = [seed for seed in seeds if seed not in done]
    if not seeds:
        return
    wanted.frames.mkdir(parents=True, exist_ok=True)
    nodes = configured(
        find_profile("vla-sim"),
        [
            "lockstep:=true",
            f"model_path:={wanted.model}",
            f"instruction:={wanted.instruction}",
            f"sim.draw_elsewhere:={str(wanted.draw_elsewhere).lower()}",
            "device:=cpu",
        ],
    )
    with running(nodes, wanted.log_dir) as session:
        session.status("vla_inference")
        film = _Film(session)
        for seed in seeds:
            begin = session.reset_simulator(seed)
            end = session.wait_episode_end()
            strip = wanted.frames / f"{seed}.jpg"
            strip.write_bytes(encode_jpeg(film.strip(begin)))
            entry = {"seed": seed, "success": bool(end["success"]), "steps": end["steps"], "strip": str(strip)}
            append_entry(wanted.journal, entry)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_bringup.demo.trials", description="Try a policy in simulation, through ROS."
    )
    parser.add_argument("--model", type=Path, required=True, help="merged model directory or checkpoint-N")
    parser.add_argument("--instruction", default=INSTRUCTION, help="(default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the starts (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="between seeds (default: %(default)s)")
    parser.add_argument("--draw-elsewhere", action="store_true", help="show the object where it is not")
    parser.add_argument("--output", type=Path, default=Path("outputs/trials"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    wanted = Trials(
        model=arguments.model,
        instruction=arguments.instruction,
        episodes=arguments.episodes,
        first_seed=arguments.first_seed,
        stride=arguments.stride,
        draw_elsewhere=arguments.draw_elsewhere,
        journal=arguments.output / f"trials-{arguments.first_seed}-{arguments.stride}.jsonl",
        frames=arguments.output / "frames",
        log_dir=arguments.output / f"log-{arguments.first_seed}",
    )
    return run_worker(lambda: run_trials(wanted))


if __name__ == "__main__":
    sys.exit(main())
