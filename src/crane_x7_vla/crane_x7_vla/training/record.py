"""``run.json``: what is needed to repeat a run, besides its config.yaml and its data."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crane_x7_vla.checkpoints.base_model import hub_revision
from crane_x7_vla.errors import CheckpointError
from crane_x7_vla.training.loading import EpisodeSplit

FILE_NAME = "run.json"
_PACKAGES = ("crane-x7-vla", "torch", "numpy", "peft", "transformers", "tokenizers", "safetensors", "simplejpeg")


def describe_run(split: EpisodeSplit, *, data_root: Path, base: Path | None) -> dict[str, Any]:
    """The code, the machine, the base model and the episodes of this run, as JSON holds them. base: its directory."""
    return {
        "command": sys.argv,
        "git": git_state(Path(__file__)),
        "base_model": None if base is None else {"directory": str(base), "hub_revision": hub_revision(base)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "data_root": str(data_root.resolve()),
        "split": asdict(split),
    }


def git_state(file: Path) -> dict[str, Any] | None:
    """{'commit': hash, 'changed': whether files differ from it} of the repository that ``file`` is kept in.

    None without git and where no repository tracks the file: a package may be installed inside a foreign one.
    """
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        commit = _git(file.parent, "rev-parse", "HEAD")
        changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed)}


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write run.json."""
    (folder / FILE_NAME).write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_split(checkpoint: Path) -> tuple[Path, EpisodeSplit]:
    """(data root, split) of the run that wrote a checkpoint. Raises CheckpointError without a usable run.json."""
    path = checkpoint / FILE_NAME
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        split = run["split"]
        return Path(run["data_root"]), EpisodeSplit(
            train=tuple(split["train"]), val=tuple(split["val"]), fingerprint=split["fingerprint"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not say which episodes the model was trained on ({error}); expected a checkpoint-N directory"
        ) from error


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
