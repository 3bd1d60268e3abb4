"""Where a base model lies: in a directory of this machine, or in a Hugging Face repository. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crane_x7_vla.errors import CheckpointError

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "*.pt", "tokenizer.model")
_SNAPSHOTS = "snapshots"


def local_model(model_id: str) -> Path | None:
    """The whole path of a ``model_id`` that is a directory here, None for the id of a Hugging Face repository.

    Raises CheckpointError for a path that is not there: only NAME/NAME can be an id. It is one even where a folder NAME
    lies here, as one of downloads may; ./NAME/NAME is a path.
    """
    path = Path(model_id).expanduser()
    if path.is_dir():
        return path.resolve()
    if not _HUB_ID.fullmatch(model_id):
        raise CheckpointError(f"base model {model_id} is not a directory; name one with config.json and safetensors")
    return None


def is_same_model(one: str, other: str) -> bool:
    """Whether two values of ``model_id`` name one base model: the same id, or paths to one directory."""
    if one == other:
        return True
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return first.is_dir() and second.is_dir() and first.samefile(second)


def resolve_model(model_id: str) -> Path:
    """The directory of a base model: ``model_id`` itself, or the local copy of a Hugging Face repository.

    Raises CheckpointError where there is no such directory and the hub does not give it.
    """
    local = local_model(model_id)
    if local is not None:
        return local
    # Imported here: it loads an HTTP client, which models on disk do not need.
    from huggingface_hub import snapshot_download

    instead = f"download it elsewhere with: hf download {model_id} --local-dir DIR and name DIR"
    with _hub_errors(f"base model {model_id} is no directory here and", instead):
        return Path(snapshot_download(model_id, allow_patterns=list(_HUB_FILES)))


def hub_file(model_id: str, name: str, *, beside: Path) -> Path:
    """The local copy of one file of a Hugging Face repository.

    beside: directory in which the user can lay it instead. Raises CheckpointError where the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    instead = f"download it elsewhere with: hf download {model_id} {name} and put it into {beside}"
    with _hub_errors(f"{beside} lacks {name} and", instead):
        return Path(hf_hub_download(model_id, name))


@contextmanager
def _hub_errors(what: str, instead: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{what} the Hugging Face hub did not give it ({type(error).__name__}). Check the name and the network, "
            f"log in with: hf auth login (a gated model also needs its licence accepted on its page), or {instead}"
        ) from error


def hub_revision(directory: Path) -> str | None:
    """The commit of a repository whose local copy ``directory`` is (…/snapshots/COMMIT), None for other directories."""
    return directory.name if directory.parent.name == _SNAPSHOTS else None
