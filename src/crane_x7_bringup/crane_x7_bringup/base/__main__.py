"""Make the pretrained base that the demo fine-tunes: ``python -m crane_x7_bringup.base``.

Nobody trains a vision-language-action model from scratch on a hundred demonstrations: towers that have seen only their
hundred object positions learn to ignore the camera, because the joint state alone explains most steps. This command
gives the demo's small OpenVLA-OFT what the published one got from its pretraining. It learns to say where the object
named in the instruction is, on thousands of rendered scenes of random objects, arm poses, light and colours. No action
and no part of the demo's task is shown to it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from crane_x7_bringup.base.pretraining import BATCH, HELD_OUT, Pretraining
from crane_x7_bringup.base.progress import progress_bar
from crane_x7_bringup.base.scenes import render_in_parallel
from crane_x7_bringup.base.shape import BASE_DIRECTORY
from crane_x7_bringup.signals import interrupt_on_ending_signals
from crane_x7_vla.command import run_command
from crane_x7_vla.errors import ConfigError

_REPORT = 150


def make_base(
    directory: Path, *, scenes: int, steps: int, seed: int, workers: int, console: Console
) -> dict[str, float]:
    """Render, train for ``steps`` updates, write the base into ``directory``; returns the last evaluation.

    What there is at a report goes to the ``unfinished`` folder beside it; ``directory`` stays as it was until the end.
    """
    if scenes <= HELD_OUT + BATCH:
        raise ConfigError(f"--scenes is {scenes}; expected more than {HELD_OUT + BATCH}, of which some are held out")
    if steps < 1:
        raise ConfigError(f"--steps is {steps}; expected 1 or more")
    data = render_in_parallel(scenes, seed=seed, workers=workers, console=console)
    training = Pretraining(data, seed=seed)
    count = sum(parameter.numel() for parameter in training.model.parameters())
    console.print(f"training {count / 1e6:.2f} M parameters for {steps} steps on {len(data)} scenes")
    losses: list[float] = []
    result: dict[str, float] = {}
    with progress_bar(console) as progress:
        bar = progress.add_task("training", total=steps)
        while training.steps < steps:
            losses.append(training.step(training.steps / steps))
            progress.update(bar, completed=training.steps)
            if training.steps % _REPORT == 0 or training.steps == steps:
                result = training.evaluate()
                console.print(_line(training.steps, losses, result))
                losses.clear()
                training.save(directory if training.steps == steps else unfinished(directory))
    shutil.rmtree(unfinished(directory), ignore_errors=True)
    console.print(f"base model written to {directory}")
    return result


def unfinished(directory: Path) -> Path:
    """Where the base lies while it is trained."""
    return directory.with_name(f"{directory.name}.unfinished")


def _line(steps: int, losses: Sequence[float], result: dict[str, float]) -> str:
    return (
        f"step {steps}: loss {np.mean(losses):.3f}, lone cube {result['alone_mm']:.1f} mm, "
        f"named cube {result['named_mm']:.1f} mm, right one {result['named_right']:.0%}"
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m crane_x7_bringup.base", description="Make the pretrained base.")
    parser.add_argument(
        "--output", type=Path, default=BASE_DIRECTORY, help="folder of the model (default: %(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=40000, help="rendered scenes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of scenes and weights (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes (default: %(default)s)")
    arguments = parser.parse_args()

    def command() -> int:
        make_base(
            arguments.output,
            scenes=arguments.scenes,
            steps=arguments.steps,
            seed=arguments.seed,
            workers=arguments.workers,
            console=Console(),
        )
        return 0

    interrupt_on_ending_signals()
    stopped = (
        f"stopped; {arguments.output} is as it was, the model of the last report, if there was one, is in "
        f"{unfinished(arguments.output)}"
    )
    return run_command(command, interrupted=stopped)


if __name__ == "__main__":
    sys.exit(main())
