"""``python -m crane_x7_bringup.demo``: from nothing to an arm that moves by what it learnt, through ROS.

Records demonstrations of a scripted expert, fine-tunes the small base on them, merges the adapters, lets the inference
node drive the arm on starts it has not seen, and reports. It may be stopped at any time and started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from crane_x7_bringup.demo.commands import StageFailedError
from crane_x7_bringup.demo.plan import FULL, SMOKE, Plan
from crane_x7_bringup.demo.stages import Demo
from crane_x7_bringup.signals import interrupt_on_ending_signals
from crane_x7_vla.command import run_command

GOALS_MISSED = 3


def main() -> int:
    """Returns 0; 3 when the full demo missed its goals; the code of a command that failed; or as ``run_command``."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_bringup.demo", description="Record, train, merge, run, report."
    )
    parser.add_argument("--seed", type=int, default=0, help="of scenes, training and trials (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="the same chain with tiny numbers, in three minutes")
    parser.add_argument("--data-root", type=Path, help="folder of the recordings (default: data/tfrecord_logs)")
    parser.add_argument("--output-dir", type=Path, help="folder of everything else (default: outputs)")
    parser.add_argument("--fresh", action="store_true", help="do every stage again instead of going on")
    arguments = parser.parse_args()
    size = SMOKE if arguments.smoke else FULL

    def command() -> int:
        plan = Plan.make(size, seed=arguments.seed, data_root=arguments.data_root, output_dir=arguments.output_dir)
        try:
            met = Demo(plan, Console()).run(fresh=arguments.fresh)
        except StageFailedError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.code
        return 0 if met else GOALS_MISSED

    interrupt_on_ending_signals()
    again = "without --fresh" if arguments.fresh else "with the same command"
    stopped = f"\nstopped; nothing that was finished is lost. Go on {again}."
    return run_command(command, interrupted=stopped)


if __name__ == "__main__":
    sys.exit(main())
