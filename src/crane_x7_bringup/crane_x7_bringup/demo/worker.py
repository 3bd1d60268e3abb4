"""What the demo's two kinds of worker share: a domain and nodes of their own, a journal, and a clean end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crane_x7_bringup.domain import take_domain
from crane_x7_bringup.session import Session
from crane_x7_bringup.supervisor import NodeEndedError, NodeSpec, Supervisor
from crane_x7_vla.errors import USER_ERRORS

INTERRUPTED = 130


@contextmanager
def running(nodes: Sequence[NodeSpec], log_dir: Path) -> Iterator[Session]:
    """The nodes in a domain of their own, and a session with them; all end together with this process's parent."""
    parent = os.getppid()
    with take_domain() as domain, Supervisor(nodes, domain=domain.number, log_dir=log_dir) as supervisor:

        def watch() -> None:
            supervisor.check()
            if os.getppid() != parent:
                raise KeyboardInterrupt

        with Session(domain.number, watch=watch) as session:
            yield session


def run_worker(work: Callable[[], None]) -> int:
    """Exit code of ``work``: 0, 2 with one line for what the user can mend, 130 when interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        work()
    except (*USER_ERRORS, NodeEndedError, TimeoutError) as error:
        sys.stderr.write(f"error: {error}\n")
        return error.code if isinstance(error, NodeEndedError) and error.code else 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
