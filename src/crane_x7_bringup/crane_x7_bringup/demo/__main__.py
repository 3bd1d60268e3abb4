"""``python -m crane_x7_bringup.demo``: from nothing to an arm that moves by what it learnt, through ROS.

Records demonstrations of a scripted expert, fine-tunes the small base on them, merges the adapters, lets the inference
node drive the arm on starts it has not seen, and reports. It may be stopped at any time and started again.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console

from crane_x7_bringup.demo.plan import FULL, SMOKE, Plan
from crane_x7_bringup.demo.stages import Demo, StageFailedError
from crane_x7_vla.errors import USER_ERRORS

INTERRUPTED = 130


def main() -> int:
    """The command."""
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
    plan = Plan.make(size, seed=arguments.seed, data_root=arguments.data_root, output_dir=arguments.output_dir)
    console = Console()
    # Said explicitly, as a shell that starts it in the background has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        Demo(plan, console).run(fresh=arguments.fresh)
    except USER_ERRORS as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 2
    except StageFailedError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return error.code
    except KeyboardInterrupt:
        console.print("\nstopped; nothing that was finished is lost. Go on with the same command.")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
