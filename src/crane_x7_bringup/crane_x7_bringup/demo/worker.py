"""What the demo's two kinds of worker share: a domain and nodes of their own, and a clean end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crane_x7_bringup.session import Session
from crane_x7_bringup.signals import interrupt_on_ending_signals
from crane_x7_bringup.supervisor import NodeEndedError, NodeSpec, Supervisor
from crane_x7_vla.command import USER_ERROR, run_command
from crane_x7_vla.nodes.domain import take_domain


@contextmanager
def running(nodes: Sequence[NodeSpec], log_dir: Path) -> Iterator[Session]:
    """The nodes in a domain of their own, and a session with them."""
    with (
        take_domain() as domain,
        Supervisor(nodes, domain=domain.number, log_dir=log_dir) as supervisor,
        Session(domain.number, watch=supervisor.check) as session,
    ):
        yield session


def run_worker(work: Callable[[], None]) -> int:
    """Exit code of ``work``, as of every command; a node that has ended gives its own."""

    def command() -> int:
        try:
            work()
        except (NodeEndedError, TimeoutError) as error:
            sys.stderr.write(f"error: {error}\n")
            return error.code if isinstance(error, NodeEndedError) else USER_ERROR
        return 0

    interrupt_on_ending_signals()
    return run_command(command)
