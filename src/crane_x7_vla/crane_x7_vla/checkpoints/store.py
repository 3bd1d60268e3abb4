"""The checkpoints of one run: directories that appear whole or not at all.

``checkpoint-N`` is written under another name, brought to the disk and renamed; ``checkpoint-final`` and
``checkpoint-best`` are links to the last and the best of them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from crane_x7_vla.errors import CheckpointError

logger = logging.getLogger(__name__)

FINAL = "checkpoint-final"
BEST = "checkpoint-best"
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished-"
_REPLACED = ".replaced-"


class CheckpointStore:
    """Checkpoints under the folder ``root`` of a run, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._newest: int | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        if not self.root.is_dir():
            return []
        found = [_NUMBERED.fullmatch(path.name) for path in self.root.iterdir() if path.is_dir()]
        return sorted(int(match[1]) for match in found if match is not None)

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.root / f"checkpoint-{step}"

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill an empty directory and make it ``checkpoint-{step}``, in place of one of that name.

        A process that dies in between leaves the checkpoints that were there; the next save tidies up after it.
        Raises CheckpointError where the disk is full; what was written so far is removed again.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._clean_up()
        target = self.path(step)
        unfinished = self.root / f"{_UNFINISHED}{target.name}"
        unfinished.mkdir()
        try:
            write(unfinished)
            sync_tree(unfinished)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            kept = f"the last one is {self.path(self.steps()[-1])}" if self.steps() else "there is none yet"
            raise CheckpointError(
                f"no space left under {self.root} for {target.name}; {kept}. Free some space or keep fewer "
                "(--keep-last 2), then go on with --resume-from-checkpoint latest"
            ) from error
        if target.exists():  # a directory cannot be renamed over another one
            replaced = self.root / f"{_REPLACED}{target.name}"
            target.rename(replaced)
            unfinished.rename(target)
            shutil.rmtree(replaced)
        else:
            unfinished.rename(target)
        _sync(self.root)
        self._newest = step
        return target

    def link(self, name: str, step: int) -> None:
        """Point the link ``name`` at the checkpoint of ``step``; relative, so that the run can be moved."""
        fresh = self.root / f".{name}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.path(step).name)
        fresh.replace(self.root / name)
        _sync(self.root)

    def linked(self, name: str) -> int | None:
        """The step that the link ``name`` points at, or None without such a link."""
        link = self.root / name
        match = _NUMBERED.fullmatch(os.readlink(link)) if link.is_symlink() else None
        return int(match[1]) if match is not None else None

    def prune(self, keep_last: int) -> None:
        """Remove all but the newest ``keep_last``, those linked to and the one saved last; 0 keeps all."""
        kept = {self.linked(FINAL), self.linked(BEST), self._newest}
        for step in self.steps()[:-keep_last] if keep_last else []:
            if step not in kept:
                shutil.rmtree(self.path(step))
                logger.info("removed %s (keep_last %d)", self.path(step), keep_last)

    def resolve(self, name: str) -> Path:
        """The directory of a checkpoint to resume from: a path, or 'latest'. Raises CheckpointError without it."""
        if name != "latest":
            path = Path(name).resolve()
            if not path.is_dir():
                raise CheckpointError(f"no checkpoint {name}{self._known()}")
            refuse_experiment(path)
            return path
        if not self.steps():
            raise CheckpointError(f"no checkpoint under {self.root} to resume from; train without resuming first")
        return self.path(self.steps()[-1])

    def check_newest(self, checkpoint: Path) -> None:
        """Raise CheckpointError where there are checkpoints that a run going on from ``checkpoint`` does not follow.

        'latest' and keep_last take the one with the highest number for the newest, whichever run it is of.
        """
        is_here = checkpoint.resolve().parent == self.root.resolve()
        number = _NUMBERED.fullmatch(checkpoint.resolve().name) if is_here else None
        others = [self.path(step) for step in self.steps() if number is None or step > int(number[1])]
        if others:
            raise CheckpointError(
                f"{self.root} holds {', '.join(path.name for path in others)}, which a run going on from {checkpoint} "
                f"does not follow; choose another --experiment-name, or remove them: rm -r {' '.join(map(str, others))}"
            )

    def _clean_up(self) -> None:
        """Remove what a process that died left; a checkpoint that it was about to replace comes back."""
        for leftover in self.root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        for replaced in self.root.glob(f"{_REPLACED}*"):
            target = self.root / replaced.name.removeprefix(_REPLACED)
            if target.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(target)

    def _known(self) -> str:
        names = ", ".join(str(self.path(step)) for step in self.steps())
        return f"; there are: {names}" if names else f"; there is none under {self.root} either"


def refuse_experiment(directory: Path) -> None:
    """Raise CheckpointError naming the newest checkpoint where ``directory`` is the folder above the checkpoints."""
    store = CheckpointStore(directory)
    if store.steps():
        raise CheckpointError(
            f"{directory} is the folder of an experiment; name one of its checkpoints: {store.path(store.steps()[-1])}"
        )


def sync_tree(folder: Path) -> None:
    """Bring a directory and all that is in it to the disk."""
    for directory, _, files in os.walk(folder):
        for file in files:
            _sync(Path(directory) / file)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
