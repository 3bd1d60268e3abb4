"""Record demonstrations through ROS: simulated arm, scripted expert and recorder, all real nodes.

    python -m crane_x7_bringup.demo.collect --data-root data/tfrecord_logs --episodes 50

The expert teleoperates the arm through the topics a person would use; episodes that fail are discarded.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crane_x7_bringup.demo.journal import append_entry, read_journal
from crane_x7_bringup.demo.worker import run_worker, running
from crane_x7_bringup.profiles import INSTRUCTION, configured, find_profile
from crane_x7_bringup.session import Session
from crane_x7_bringup.supervisor import NodeEndedError
from crane_x7_vla.data.metadata import METADATA_NAME, read_metadata
from crane_x7_vla.errors import ConfigError, DataError
from lift.expert import DISTURBANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """episodes: successes wanted. first_seed, stride: the scenes tried, one after the other. journal: one line per
    attempt. log_dir: gets the nodes' logs. disturbance: exploration noise on the executed targets, rad.

    Raises ConfigError for a negative seed.
    """

    data_root: Path
    episodes: int
    instruction: str
    first_seed: int
    stride: int
    journal: Path
    log_dir: Path
    disturbance: float = DISTURBANCE

    def __post_init__(self) -> None:
        if self.first_seed < 0:
            raise ConfigError(f"--first-seed is {self.first_seed}; expected 0 or more")

    def command(self) -> list[str]:
        """``python …`` with this records them."""
        return [
            *("-m", "crane_x7_bringup.demo.collect", "--data-root", str(self.data_root)),
            *("--instruction", self.instruction, "--episodes", str(self.episodes)),
            *("--disturbance", str(self.disturbance)),
            *("--first-seed", str(self.first_seed), "--stride", str(self.stride)),
            *("--journal", str(self.journal), "--log-dir", str(self.log_dir)),
        ]


def collect(wanted: Collection) -> None:
    """Record until there are enough; what the journal says is done already is not done again."""
    reconcile(wanted)
    entries = read_journal(wanted.journal)
    saved = sum(bool(entry["success"]) for entry in entries)
    if saved >= wanted.episodes:
        return
    nodes = configured(
        find_profile("log-sim"),
        [
            "lockstep:=true",
            f"output_dir:={wanted.data_root}",
            f"instruction:={wanted.instruction}",
            f"sim.disturbance:={wanted.disturbance}",
            "expert.autostart:=false",
        ],
    )
    with running(nodes, wanted.log_dir) as session:
        for seed in _seeds(wanted, done={int(entry["seed"]) for entry in entries}):
            entry = _attempt(session, seed)
            append_entry(wanted.journal, entry)
            saved += bool(entry["success"])
            if saved >= wanted.episodes:
                return
    raise DataError(f"only {saved} of {wanted.episodes} demonstrations succeeded; see the logs in {wanted.log_dir}")


def _seeds(wanted: Collection, done: set[int]) -> Iterator[int]:
    """At most twice as many scenes as episodes are wanted."""
    for i in range(2 * wanted.episodes + 10):
        seed = wanted.first_seed + i * wanted.stride
        if seed not in done:
            yield seed


def reconcile(wanted: Collection) -> None:
    """Note successes of these scenes that the journal lacks: saved just before an earlier run was killed, or by hand.

    They are marked as found, since nobody can tell which. Raises DataError for one that is not marked a success.
    """
    noted = {int(entry["seed"]) for entry in read_journal(wanted.journal)}
    lacking = set(_seeds(wanted, done=noted))
    for path in sorted(wanted.data_root.rglob("*.tfrecord")) if wanted.data_root.is_dir() else []:
        metadata = read_metadata(path.parent / METADATA_NAME)
        if metadata is None or metadata.seed not in lacking:
            continue
        if not metadata.success:
            raise DataError(
                f"{path} is of seed {metadata.seed}, which is to be recorded, and not marked a success; mark it "
                f'("success": true in its {METADATA_NAME}), remove it, or give another --data-root'
            )
        lacking.remove(metadata.seed)
        entry = {"seed": metadata.seed, "success": True, "steps": metadata.n_steps, "path": str(path), "found": True}
        append_entry(wanted.journal, entry)


def _attempt(session: Session, seed: int) -> dict[str, object]:
    """One demonstration: recorded and saved if it succeeds, discarded if not."""
    session.call_trigger("expert/stop")
    session.reset_simulator(seed)
    saved = session.status("recorder")["saved"]
    session.set_parameter("recorder", "seed", seed)
    session.call_trigger("recorder/start")
    try:
        session.call_trigger("expert/start")
        end = session.wait_episode_end()
        if not end["success"]:
            session.call_trigger("recorder/discard")
            session.wait_status("recorder", lambda status: status["state"] == "idle", "the recorder to discard")
            return {"seed": seed, "success": False, "steps": end["steps"]}
        now = session.status("recorder")
        if now["state"] != "recording":
            raise DataError(f"the recorder stopped by itself in the episode of seed {seed}: {now['last']['reason']}")
        session.call_bool("recorder/mark_success", value=True)
        session.call_trigger("recorder/stop")
    except KeyboardInterrupt:
        with contextlib.suppress(DataError, TimeoutError, NodeEndedError):
            session.call_trigger("recorder/discard", timeout=5.0)
        raise
    status = session.wait_status(
        "recorder",
        lambda status: status["state"] == "idle" and status["saved"] > saved,
        f"the recorder to save the episode of seed {seed}",
    )
    last = status["last"]
    if last["outcome"] != "saved" or last["steps"] != end["steps"] or any(status["missed"].values()):
        raise DataError(
            f"the recorder kept {last['steps']} of {end['steps']} steps of seed {seed} ({last['outcome']}: "
            f"{last['reason']}; missed {status['missed']})"
        )
    return {"seed": seed, "success": True, "steps": end["steps"], "path": last["path"]}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_bringup.demo.collect", description="Record demonstrations of the scripted expert."
    )
    parser.add_argument("--data-root", type=Path, default=Path("data/tfrecord_logs"), help="(default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations wanted (default: %(default)s)")
    parser.add_argument("--instruction", default=INSTRUCTION, help="(default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="between seeds (default: %(default)s)")
    parser.add_argument("--disturbance", type=float, default=DISTURBANCE, help="rad (default: %(default)s)")
    parser.add_argument("--journal", type=Path, help="(default: collect.jsonl in the data root)")
    parser.add_argument("--log-dir", type=Path, default=Path("log/collect"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.journal is None:
        arguments.journal = arguments.data_root / "collect.jsonl"
    return run_worker(lambda: collect(Collection(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())
