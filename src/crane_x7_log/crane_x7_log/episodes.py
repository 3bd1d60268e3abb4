"""Look at, check and recover recorded episodes.

python -m crane_x7_log.episodes show data/tfrecord_logs --contact-sheet sheet.png
python -m crane_x7_log.episodes check data/tfrecord_logs
python -m crane_x7_log.episodes recover data/tfrecord_logs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crane_x7_log.checks import check_episode
from crane_x7_log.contact_sheet import write_contact_sheet
from crane_x7_vla.command import run_command
from crane_x7_vla.data.episode import EpisodeFile, list_episodes, list_partials, recover_episode
from crane_x7_vla.errors import DataError

DEFAULT_ROOT = Path("data/tfrecord_logs")


def show(root: Path, contact_sheet: Path | None) -> str:
    """A table of the episodes under ``root``, and the contact sheet if wanted."""
    paths = list_episodes(root)
    rows = [("episode", "steps", "seconds", "Hz", "cameras", "commanded", "success", "missed", "instruction")]
    seconds = steps = successes = 0.0
    for path in paths:
        file = EpisodeFile(path)
        arrays = file.arrays()
        metadata = file.metadata
        lasted = float(arrays.stamp[-1] - arrays.stamp[0])
        rate = (len(file) - 1) / lasted if lasted > 0 else 0.0
        seconds, steps = seconds + lasted, steps + len(file)
        successes += metadata is not None and metadata.success is True
        rows.append(
            (
                str(path.parent.relative_to(root)) if path.is_relative_to(root) and path != root else str(path),
                str(len(file)),
                f"{lasted:.1f}",
                f"{rate:.1f}",
                ",".join(file.cameras),
                "no" if arrays.commanded is None else "yes",
                _success(None if metadata is None else metadata.success),
                "?" if metadata is None else str(sum(metadata.missed.values())),
                file.instruction,
            )
        )
    lines = _table(rows)
    lines.append(f"{len(paths)} episodes, {steps:.0f} steps, {seconds:.0f} s, {successes:.0f} marked as success")
    partials = list_partials(root) if root.is_dir() else []
    if partials:
        lines.append(
            f"{len(partials)} more were cut off; recover them with: python -m crane_x7_log.episodes recover {root}"
        )
    if contact_sheet is not None:
        write_contact_sheet(paths, contact_sheet)
        lines.append(f"wrote {contact_sheet}")
    return "\n".join(lines)


def check(root: Path) -> tuple[str, bool]:
    """What is wrong with the episodes under ``root``, and whether all can be used."""
    lines: list[str] = []
    broken = warned = 0
    paths = list_episodes(root)
    for path in paths:
        findings = check_episode(path)
        broken += any(finding.is_error for finding in findings)
        warned += any(not finding.is_error for finding in findings)
        lines += [f"{path}: {'ERROR' if f.is_error else 'warning'}: {f.text}" for f in findings]
    for partial in list_partials(root) if root.is_dir() else []:
        warned += 1
        lines.append(
            f"{partial}: warning: cut off or being recorded; python -m crane_x7_log.episodes recover {partial}"
        )
    lines.append(f"{len(paths)} episodes checked: {broken} with errors, {warned} with warnings")
    return "\n".join(lines), broken == 0


def recover(root: Path) -> tuple[str, bool]:
    """Make whole episodes of what was cut off; a sentence for each, and whether all could be recovered."""
    partials = [root] if root.is_file() else list_partials(root)
    if not partials:
        raise DataError(f"nothing to recover under {root}: no *.tfrecord.partial there")
    lines: list[str] = []
    failed = 0
    for partial in partials:
        try:
            path = recover_episode(partial)
        except DataError as error:
            failed += 1
            lines.append(f"not recovered: {error}")
        else:
            lines.append(f"recovered {len(EpisodeFile(path))} steps: {path}")
    return "\n".join(lines), failed == 0


def _success(success: bool | None) -> str:
    return {None: "-", True: "yes", False: "no"}[success]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m crane_x7_log.episodes", description="Recorded episodes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("show", "a table of the episodes"),
        ("check", "read every record and look for what would spoil training; exit code 1 when something is wrong"),
        ("recover", "make whole episodes of those that were cut off"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "root", type=Path, nargs="?", default=DEFAULT_ROOT, help=f"folder or file (default: {DEFAULT_ROOT})"
        )
        if name == "show":
            command.add_argument(
                "--contact-sheet", type=Path, metavar="PNG", help="write a picture of the episodes, one row for each"
            )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when check or recover found something wrong, 2 for what the user can mend."""
    given = _parser().parse_args(arguments)

    def run() -> int:
        fine = True
        if given.command == "show":
            text = show(given.root, given.contact_sheet)
        elif given.command == "check":
            text, fine = check(given.root)
        else:
            text, fine = recover(given.root)
        sys.stdout.write(text + "\n")
        return 0 if fine else 1

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
