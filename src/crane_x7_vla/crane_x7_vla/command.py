"""What every command of the suite does with an error: its exit code and the one line that the user reads."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

from crane_x7_vla.errors import USER_ERRORS

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
CLOSED_PIPE = 141  # 128 + SIGPIPE

_REMEDIES = {
    errno.ENOSPC: "free some space on that disk and run it again",
    errno.EDQUOT: "free some of your quota on that disk and run it again",
    errno.EROFS: "choose a folder on a disk that is mounted for writing",
    errno.EACCES: "check who owns it with: ls -ld",
    errno.EPERM: "check who owns it with: ls -ld",
    errno.EEXIST: "a file is where a folder is needed; choose another path",  # mkdir says so
    errno.ENOTDIR: "a file is where a folder is needed; choose another path",
    errno.EISDIR: "a folder is where a file is needed; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""Failures of the file system that are the user's to mend. Any other OSError is a bug and keeps its traceback."""


def run_command(command: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Run the body of a ``main()`` and give its exit code.

    2 with one line for what the user can mend: USER_ERRORS, a full disk, a folder that must not be written to.
    130 after Ctrl-C, with the line ``interrupted``. 141 without a word when who reads standard output has gone
    (``| head``); another broken pipe is a bug.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        # Python flushes standard output once more when it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror}; {_REMEDIES[error.errno]}", file=sys.stderr)
        return USER_ERROR


def _is_reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # what is told even so: POLLERR, POLLHUP and POLLNVAL
    return bool(poll.poll(0))
