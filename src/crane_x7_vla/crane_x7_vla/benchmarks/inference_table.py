"""A table of what was measured: ``python -m crane_x7_vla.benchmarks.inference_table FILE …``.

Prints Markdown, as in docs/benchmarks.md, of the JSON files that ``benchmarks.inference`` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from crane_x7_vla.benchmarks.inference import Report
from crane_x7_vla.command import run_command
from crane_x7_vla.errors import DataError

_HEAD = (
    "| backend | device | images | tokens of text | actions | median ms | 95 % ms | floor ms | peak GiB |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code, see ``run_command``."""
    return run_command(lambda: _run(_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    rows = [_row(_read(path)) for path in arguments.files]
    print("\n".join([*_HEAD, *rows]))
    return 0


def _read(path: Path) -> Report:
    """Raises DataError for anything but a file of ``benchmarks.inference``."""
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; expected a JSON file of crane_x7_vla.benchmarks.inference") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a JSON file of crane_x7_vla.benchmarks.inference ({error})") from error


def _row(report: Report) -> str:
    how = [report.dtype, *([] if report.graph else ["eager"]), *([f"batch {report.batch}"] if report.batch > 1 else [])]
    cells = (
        f"{report.backend} ({report.architecture})",
        f"{report.device}, {', '.join(how)}",
        report.images,
        report.prompt_tokens,
        f"{report.actions} x {report.joints}",
        f"{report.median_ms:.1f}",
        f"{report.p95_ms:.1f}",
        f"{report.floor_ms:.1f}",
        f"{report.peak_memory_bytes / 2**30:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_vla.benchmarks.inference_table",
        description="A Markdown table of JSON files that crane_x7_vla.benchmarks.inference wrote.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
