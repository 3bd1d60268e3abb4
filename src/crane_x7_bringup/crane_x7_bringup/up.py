"""``ros2 launch`` for machines that have rclpy but no launch: python -m crane_x7_bringup.up PROFILE [NAME:=VALUE …]."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from crane_x7_bringup.profiles import PROFILES, Profile, configured, find_profile
from crane_x7_bringup.signals import on_ending_signals
from crane_x7_bringup.supervisor import NodeEndedError, NodeSpec, Supervisor
from crane_x7_vla.command import run_command
from crane_x7_vla.nodes.domain import requested_domain, take_domain

# Fast DDS hands messages below half of its usual segment (0.5 MB) over without loss.
_BIG_IMAGE = 200_000
# Segment of shared memory per participant with params/dds_big_images.xml, bytes.
_SEGMENT = 36_000_000


def image_variables(nodes: Sequence[NodeSpec], shared_memory: Path = Path("/dev/shm")) -> dict[str, str]:
    """Variables that give DDS larger buffers where the simulator's images need them and there is room for it.

    With the usual ones about one in ten 640 x 480 images was lost to best-effort readers, with these none.
    """
    size = max((n.parameters.get("image_width", 0) * n.parameters.get("image_height", 0) * 3 for n in nodes), default=0)
    if size < _BIG_IMAGE or shutil.disk_usage(shared_memory).free < _SEGMENT * (len(nodes) + 2):
        return {}
    path = str(files("crane_x7_bringup") / "params" / "dds_big_images.xml")
    # Jazzy's Fast DDS 2 reads the first, Kilted's Fast DDS 3 the second.
    return {"FASTRTPS_DEFAULT_PROFILES_FILE": path, "FASTDDS_DEFAULT_PROFILES_FILE": path}


def run(profile: Profile, words: Sequence[str], *, log_dir: Path) -> int:
    """Run the profile until a signal (0) or until one of its nodes ends (that node's code, never 0).

    A second signal does not wait for the nodes: it raises KeyboardInterrupt.
    """
    nodes = configured(profile, words)
    stop = threading.Event()
    interrupted = 0

    def on_signal(number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted += 1
        stop.set()
        if interrupted > 1:
            raise KeyboardInterrupt

    on_ending_signals(on_signal)
    with take_domain(requested_domain(os.environ)) as domain:
        note = (
            "other ROS nodes are in it too" if domain.shared else f"join it with: export ROS_DOMAIN_ID={domain.number}"
        )
        _say(f"{profile.description}; ROS domain {domain.number}, {note}; logs in {log_dir}; Ctrl-C stops everything")
        try:
            with Supervisor(
                nodes,
                domain=domain.number,
                log_dir=log_dir,
                sink=lambda name, line: _say(f"[{name}] {line}"),
                variables=image_variables(nodes),
            ) as supervisor:
                supervisor.wait(stop)
        except NodeEndedError as ended:
            sys.stderr.write(f"error: {ended}; the other nodes were stopped\n")
            return ended.code
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _help() -> str:
    lines = []
    for profile in PROFILES.values():
        lines.append(f"{profile.name}: {profile.description}")
        for argument in profile.arguments:
            default = str(argument.default).lower() if isinstance(argument.default, bool) else f"{argument.default}"
            lines.append(f"  {argument.name}:={default or '…'}".ljust(33) + f" {argument.description}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 after a signal, the code of the node that ended first, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_bringup.up",
        description=__doc__,
        epilog=_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", help=", ".join(PROFILES))
    parser.add_argument("arguments", nargs="*", metavar="NAME:=VALUE", help="arguments, or NODE.PARAMETER:=VALUE")
    parser.add_argument("--log-dir", type=Path, default=None, help="default: log/<profile>")
    options = parser.parse_args(argv)

    def command() -> int:
        profile = find_profile(options.profile)
        return run(profile, options.arguments, log_dir=options.log_dir or Path("log") / profile.name)

    return run_command(command, interrupted="killed the nodes instead of waiting for them")


if __name__ == "__main__":
    sys.exit(main())
