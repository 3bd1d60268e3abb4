"""``python -m crane_x7_vla.scripts.compute_crane_x7_norm_stats BACKEND --data-root DIR``.

Writes the statistics that training would compute with the same settings: of the training episodes, in the backend's
form of action. Training needs no such file; ``--statistics-path`` uses one, and refuses one of other episodes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crane_x7_vla.command import run_command
from crane_x7_vla.data.statistics import FILE_NAME, to_json
from crane_x7_vla.training.arguments import ConfigCommand, parse_statistics


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(lambda: write_statistics(parse_statistics(arguments, environ=os.environ)))


def write_statistics(command: ConfigCommand) -> int:
    """Compute the statistics of the command's training episodes and write them to its output."""
    from crane_x7_vla.training.loading import prepare_data
    from crane_x7_vla.training.preflight import check_file

    config = replace(command.config, data=replace(command.config.data, statistics_path=None))
    output = command.output or Path(config.data.data_root) / FILE_NAME
    check_file(output, option="--output")
    text = to_json(prepare_data(config).statistics)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}; train with it: --statistics-path {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
