"""TensorBoard's event files, without TensorFlow.

torch.utils.tensorboard imports TensorFlow where that is installed, which takes seconds and writes to the terminal. An
event file is a TFRecord file of Event messages (tensorboard/compat/proto/event.proto).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from crane_x7_vla.data.tfrecord import write_record


class EventFile:
    """A new event file in ``folder``. first_step: TensorBoard drops what earlier files hold of later steps."""

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}").open("wb")
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._write(Event(wall_time=now, step=first_step + 1, session_log=start))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One point of each curve."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        write_record(self._file, event.SerializeToString())
        self._file.flush()
