"""A ROS domain of one's own on this machine, so that two runs never hear each other.

A domain is taken by locking a file, which the kernel releases however the process ends, and is free only if no process
on this machine has a socket on the domain's ports (another user's nodes, ``ros2`` commands, containers on the host's
network). Other machines are kept out by what ``environment`` sets.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from crane_x7_vla.errors import ConfigError

# DDS-RTPS 2.2, 9.6.1.1: ports of a domain begin at 7400 + 250 * domain. Above 101 they reach into the range from which
# Linux gives ports to anyone (32768).
_PORT_BASE = 7400
_PORTS_PER_DOMAIN = 250
_LARGEST = 101
# Domain 0 is everybody's default; the first ones are what people choose by hand.
_FIRST_CHOICE = 20


class Domain:
    """A locked domain: ``with take_domain() as domain: … domain.number``."""

    def __init__(self, number: int, lock: int, *, shared: bool = False) -> None:
        """lock: file descriptor that holds the lock. shared: whether other ROS nodes are in the domain too."""
        self.number = number
        self.shared = shared
        self._lock: int | None = lock

    def release(self) -> None:
        """Let others have it; the nodes should have ended."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Domain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def requested_domain(environment: dict[str, str] | os._Environ[str]) -> int | None:
    """ROS_DOMAIN_ID as a number, None where it is not set. Raises ConfigError when it is no domain."""
    text = environment.get("ROS_DOMAIN_ID", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) > _LARGEST:
        raise ConfigError(
            f"ROS_DOMAIN_ID is '{text}', expected a number from 0 to {_LARGEST}; unset it to have one chosen"
        )
    return int(text)


def take_domain(number: int | None = None, *, folder: Path | None = None) -> Domain:
    """Lock the domain ``number``, or a free one when it is None.

    A domain that is asked for may be shared with nodes that are not of this suite (rviz, the ros2 daemon); one that is
    chosen here never is. folder: where the lock files are; all users of a machine share the default.
    Raises ConfigError when the domain asked for is taken by another run of this suite, and when none is free.
    """
    folder = Path(tempfile.gettempdir()) / "crane_x7_ros_domains" if folder is None else folder
    used = _domains_with_sockets()
    if number is not None:
        lock = _try_lock(folder, number)
        if lock is None:
            raise ConfigError(
                f"ROS domain {number} is in use by another run of this suite (process {_holder(folder, number)}). "
                "Stop it, choose another with ROS_DOMAIN_ID=…, or unset ROS_DOMAIN_ID to have one chosen"
            )
        return Domain(number, lock, shared=number in used)
    for candidate in range(_FIRST_CHOICE, _LARGEST + 1):
        if candidate in used:
            continue
        lock = _try_lock(folder, candidate)
        if lock is not None:
            return Domain(candidate, lock)
    raise ConfigError(f"every ROS domain from {_FIRST_CHOICE} to {_LARGEST} is in use on this machine; stop some nodes")


def environment(domain: int, *, distribution: str | None = None) -> dict[str, str]:
    """Variables that keep nodes inside ``domain`` and on this machine.

    distribution: of ROS, that of ROS_DISTRO by default. Humble knows nothing of discovery ranges; later ones warn of
    ROS_LOCALHOST_ONLY or pass over it.
    """
    distribution = os.environ.get("ROS_DISTRO", "") if distribution is None else distribution
    if distribution == "humble":
        return {"ROS_DOMAIN_ID": str(domain), "ROS_LOCALHOST_ONLY": "1"}
    return {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def _try_lock(folder: Path, number: int) -> int | None:
    """File descriptor of the locked file, None when another process holds it.

    Everybody may write into the folder, so that what lies there is used only if it is a plain file without a second
    name: a link could lead to a file of this user's. Raises ConfigError otherwise.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
    path = folder / f"{number}.lock"
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        # Without O_CREAT first: in a sticky folder Linux refuses O_CREAT on a file of another user.
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)
    except OSError as error:
        raise ConfigError(f"{path} cannot be locked: {error.strerror}; remove it, or set TMPDIR") from error
    status = os.fstat(descriptor)
    if folder.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise ConfigError(f"{path} is not a plain file; remove it, or set TMPDIR")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _holder(folder: Path, number: int) -> str:
    return (folder / f"{number}.lock").read_text().strip() or "unknown"


def _domains_with_sockets() -> set[int]:
    """Domains on whose ports some process of this machine listens (Linux: /proc/net/udp, all users)."""
    used: set[int] = set()
    for table in (Path("/proc/net/udp"), Path("/proc/net/udp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            port = int(line.split()[1].rpartition(":")[2], 16)
            if _PORT_BASE <= port < _PORT_BASE + _PORTS_PER_DOMAIN * (_LARGEST + 1):
                used.add((port - _PORT_BASE) // _PORTS_PER_DOMAIN)
    return used
