"""Try a policy through ROS: simulated arm and inference node, one episode a start, success judged by the simulator.

python -m crane_x7_bringup.demo.trials --model outputs/demo_merged --episodes 100
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from sensor_msgs.msg import Image

from crane_x7_bringup.demo.journal import Entry, append_entry, begin_journal, read_journal
from crane_x7_bringup.demo.worker import run_worker, running
from crane_x7_bringup.profiles import INSTRUCTION, configured, find_profile
from crane_x7_bringup.session import Json, Session
from crane_x7_vla.data.episode import encode_jpeg
from crane_x7_vla.errors import CheckpointError, ConfigError
from crane_x7_vla.nodes.messages import image_to_rgb, sensor_qos, stamp_ns
from lift.nodes.topics import camera_topic

FRAMES = 7
FIRST_SEED = 1_000_000
"""Far from the seeds of demonstrations, so that every start is new."""

# A large model takes minutes to load; a node that fails meanwhile is noticed at once.
_LOADING_S = 900.0
_PART_OF_A_MODEL = (".json", ".safetensors", ".yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """model: a merged directory or a checkpoint. first_seed, stride: the starts. draw_elsewhere: show the object where
    it is not. output: gets a journal with one line per trial, a strip of pictures per trial, and the nodes' logs.

    Raises ConfigError for a negative seed.
    """

    model: Path
    instruction: str
    episodes: int
    first_seed: int
    stride: int
    draw_elsewhere: bool
    output: Path

    def __post_init__(self) -> None:
        if self.first_seed < 0:
            raise ConfigError(f"--first-seed is {self.first_seed}; expected 0 or more")

    @property
    def journal(self) -> Path:
        """One line per finished trial."""
        return self.output / f"trials-{self.first_seed}-{self.stride}.jsonl"

    def command(self) -> list[str]:
        """``python …`` with this does these trials."""
        return [
            *("-m", "crane_x7_bringup.demo.trials", "--model", str(self.model), "--instruction", self.instruction),
            *("--episodes", str(self.episodes), "--first-seed", str(self.first_seed), "--stride", str(self.stride)),
            *("--output", str(self.output), *(["--draw-elsewhere"] if self.draw_elsewhere else [])),
        ]

    def begin(self) -> list[Entry]:
        """What has been done already of these trials, with this very model."""
        subject = {
            "model": fingerprint(self.model),
            "instruction": self.instruction,
            "draw_elsewhere": self.draw_elsewhere,
        }
        begin_journal(self.journal, subject)
        return read_journal(self.journal)


def fingerprint(model: Path) -> str:
    """Of the names and contents of a model's config files and weights; raises CheckpointError when there are none."""
    files = sorted(path for path in model.rglob("*") if path.suffix in _PART_OF_A_MODEL and path.is_file())
    if not files:
        raise CheckpointError(f"{model} holds no model; expected a merged model or a checkpoint-N directory")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(model)} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class _Film:
    """The primary camera's pictures of the present episode."""

    def __init__(self, session: Session) -> None:
        topic = camera_topic("primary")
        self._messages: list[Image] = []
        session.subscribe(Image, topic, self._messages.append, sensor_qos(lockstep=True))
        # The policy and this film: an episode that began before would lack its first pictures.
        session.wait_connected(topic, subscribers=2)

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
    done = {int(entry["seed"]) for entry in wanted.begin()}
    seeds = [wanted.first_seed + i * wanted.stride for i in range(wanted.episodes)]
    seeds = [seed for seed in seeds if seed not in done]
    if not seeds:
        return
    frames = wanted.output / "frames"
    frames.mkdir(parents=True, exist_ok=True)
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
    with running(nodes, wanted.output / f"log-{wanted.first_seed}") as session:
        session.status("vla_inference", timeout=_LOADING_S)
        film = _Film(session)
        held = 0
        for seed in seeds:
            begin = session.reset_simulator(seed)
            end = session.wait_episode_end()
            # The status comes once a second; what it says too late is counted with the next trial.
            last = end["stamp"] if seed == seeds[-1] else 0.0
            status = session.wait_status("vla_inference", partial(_reaches, last), "the policy's last status")
            holds = status["counts"]["holds"]
            strip = frames / f"{seed}.jpg"
            strip.write_bytes(encode_jpeg(film.strip(begin)))
            entry = {
                "seed": seed,
                "success": bool(end["success"]),
                "steps": end["steps"],
                "holds": holds - held,
                "strip": str(strip),
            }
            held = holds
            append_entry(wanted.journal, entry)


def _reaches(stamp: float, status: Json) -> bool:
    """Whether the status of the inference node tells of the instant ``stamp``."""
    return status["stamp"] is not None and status["stamp"] >= stamp


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
    return run_worker(lambda: run_trials(Trials(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())
