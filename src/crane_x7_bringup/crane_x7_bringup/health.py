"""Exit code 0 when each named node gets what it needs: python -m crane_x7_bringup.health NODE …

For health checks of containers: it reads the files that ``crane_x7_vla.health`` describes and does not join ROS.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from crane_x7_vla.command import run_command
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.health import STATUS_DIR, problem

UNHEALTHY = 1


def _check(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m crane_x7_bringup.health", description=__doc__)
    parser.add_argument("nodes", nargs="+", metavar="NODE", help="recorder, sim, expert or vla_inference")
    nodes: list[str] = parser.parse_args(argv).nodes
    folder = os.environ.get(STATUS_DIR)
    if not folder:
        raise ConfigError(f"{STATUS_DIR} is not set; set it to the folder that the nodes were started with")
    problems = [text for node in nodes if (text := problem(Path(folder), node)) is not None]
    sys.stdout.write("".join(f"{text}\n" for text in problems or ["healthy"]))
    return UNHEALTHY if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 healthy, 1 not, 2 for what the user can mend."""
    return run_command(lambda: _check(argv))


if __name__ == "__main__":
    sys.exit(main())
