"""``python -m crane_x7_vla.training.cli train|train-vq|config|evaluate|backends``; ``arguments`` has the flags."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from crane_x7_vla.command import INTERRUPTED, run_command
from crane_x7_vla.config.yaml import CONFIG_NAME, dump_config
from crane_x7_vla.robot import robot_spec
from crane_x7_vla.training.arguments import (
    PROGRAM,
    BackendsCommand,
    Command,
    ConfigCommand,
    EvaluateCommand,
    TrainCommand,
    VQCommand,
    backend_list,
    config_text,
    parse_command,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``; 130 also where a signal ended a training after a last checkpoint."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(lambda: _dispatch(parse_command(arguments, environ=os.environ)))


def _dispatch(command: Command) -> int:
    """Heavy imports come here, so that help, errors and configs are quick."""
    if isinstance(command, TrainCommand):
        return _train(command)
    if isinstance(command, VQCommand):
        return _train_vq(command)
    if isinstance(command, EvaluateCommand):
        return _evaluate(command)
    if isinstance(command, ConfigCommand):
        return _write_config(command)
    assert isinstance(command, BackendsCommand)
    print(backend_list())
    return 0


def _train(command: TrainCommand) -> int:
    if command.print_config:
        print(dump_config(command.config, note=lambda path: command.origins[path]), end="")
        return 0
    from crane_x7_vla.training.trainer import VLATrainer

    _log_to_stderr()
    results = VLATrainer(command.config).train()
    if results.interrupted:
        print(f"stopped at step {results.step}; go on with: {results.resume}", file=sys.stderr)
        return INTERRUPTED
    if _is_main_process():
        print(f"trained {results.step} steps: {results.checkpoint}")
    return 0


def _train_vq(command: VQCommand) -> int:
    from crane_x7_vla.training.vq import train_vq, vq_report

    _log_to_stderr()
    results = train_vq(command.config)
    print(vq_report(results, robot_spec(command.config.robot)))
    vq = results.directory
    print(f"wrote {vq}; train with it: {PROGRAM} train --config {vq / CONFIG_NAME} --vq-path {vq}")
    return 0


def _evaluate(command: EvaluateCommand) -> int:
    from crane_x7_vla.training.evaluate import as_json, evaluate_checkpoint, report
    from crane_x7_vla.training.preflight import check_file

    _log_to_stderr()
    if command.output is not None:
        check_file(command.output, option="--output")
    result = evaluate_checkpoint(command.config, command.checkpoint, test_data=command.test_data)
    robot = robot_spec(command.config.robot)
    print(report(result, robot))
    if command.output is not None:
        command.output.parent.mkdir(parents=True, exist_ok=True)
        command.output.write_text(as_json(result, robot, command.checkpoint), encoding="utf-8")
    return 0


def _write_config(command: ConfigCommand) -> int:
    text = config_text(command.config)
    if command.output is None:
        print(text, end="")
    else:
        command.output.parent.mkdir(parents=True, exist_ok=True)
        command.output.write_text(text, encoding="utf-8")
        print(f"wrote {command.output}")
    return 0


def _log_to_stderr() -> None:
    from rich.logging import RichHandler

    from crane_x7_vla.training.logs import terminal

    handler: logging.Handler = logging.StreamHandler()
    if terminal().is_terminal:  # so that lines and the progress bar do not write over each other
        handler = RichHandler(console=terminal(), show_path=False)
    level = logging.INFO if _is_main_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def _is_main_process() -> bool:
    """Whether this is not one of torchrun's further processes."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
