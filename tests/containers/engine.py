"""A Docker engine of the tests' own on a plain Debian machine, with nothing installed in the system.

The tools are Debian packages unpacked into a folder, and the engine's data lies beside them. It runs in process and
mount namespaces of its own, so that its containers and mounts end with it, and it with these tests, however they end.
A folder that a killed run left is removed by the next. Run one by hand: python -m tests.containers.engine DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

# The engine is Debian 13's; its runc needs a newer C library than Debian 12's, which also has what makes base images.
_ENGINE_PACKAGES = ("docker.io", "docker-cli", "containerd", "docker-compose", "docker-buildx")
_ENGINE_RELEASE = "trixie"
_OTHER_PACKAGES = ("runc", "tini", "mmdebstrap")
BASE_RELEASE = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_TOOL_FOLDERS = ("usr/local/bin", "usr/sbin", "usr/bin")
# The engine writes to these folders of the system whatever it is told; it gets copies of its own.
_WRITTEN = ("run", "opt")
_PREFIX = "crane_x7_engine_"
_LOCK = "lock"
_START_S = 30.0
_STOP_S = 30.0
# What the images and the layers of their build take.
_DISK_BYTES = 7_000_000_000
_MEMORY_BYTES = 2 * _DISK_BYTES


class EngineUnavailableError(RuntimeError):
    """No engine can run here; the message says why."""


class Engine:
    """``with Engine(folder) as engine: engine.docker("ps")``; ``unpack`` alone gives the tools, also without root."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: kept with tools and images, so that the next start is quick; None: a temporary one, removed."""
        self._kept = folder is not None
        if folder is None:
            clean_stale()
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _try_lock(folder)
        if self._lock is None:
            raise EngineUnavailableError(f"{folder} is in use by another run of these tests")
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def tools(self) -> Path:
        """Root of the unpacked packages."""
        return self.folder / "tools"

    @property
    def environment(self) -> dict[str, str]:
        """Of every tool: nothing of the caller's environment changes what a compose file means."""
        return {
            "PATH": ":".join(
                [*(str(self.tools / part) for part in _TOOL_FOLDERS), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            ),
            "HOME": str(self.folder / "home"),
            "DOCKER_HOST": f"unix://{self._socket}",
            "DOCKER_CONFIG": str(self.folder / "home" / ".docker"),
            "BUILDKIT_PROGRESS": "plain",
            "LANG": "C.UTF-8",
        }

    def start(self) -> None:
        """Unpack the tools and start the engine; raises EngineUnavailableError with the reason."""
        if sys.platform != "linux" or os.geteuid() != 0:
            raise EngineUnavailableError("it needs root on Linux")
        in_memory = not self._kept and _free_memory() > _MEMORY_BYTES
        free = shutil.disk_usage(self.folder).free
        if not in_memory and free < _DISK_BYTES:
            raise EngineUnavailableError(
                f"images need {_DISK_BYTES / 1e9:.0f} GB of disk, {free / 1e9:.1f} GB are free"
            )
        self.unpack()
        shutil.rmtree(self._run, ignore_errors=True)
        for folder in (self._run, self.folder / "home", self.folder / "data"):
            folder.mkdir(exist_ok=True)
        (self.folder / "engine.json").write_text("{}\n")
        with (self.folder / "engine.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [str(word) for word in self._command(in_memory=in_memory)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while self.run(["docker", "version"], check=False).returncode:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                lines = (self.folder / "engine.log").read_text(errors="replace").strip().splitlines()
                raise EngineUnavailableError(f"the Docker engine did not start: {lines[-1] if lines else 'no message'}")
            time.sleep(0.1)
        self._remove_containers()

    def stop(self) -> None:
        """End the containers and the engine, and leave nothing; safe to call twice."""
        if self._lock is None:
            return
        if self._daemon is not None and self._daemon.poll() is None:
            self._remove_containers()
            # Its parent, which is all that is known here, ignores the signal.
            for child in Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
            try:
                self._daemon.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        _remove_groups(self._group)
        if not self._kept:
            shutil.rmtree(self.folder)
        os.close(self._lock)
        self._lock = None

    def run(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
        timeout: float = 300.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool; stdout and stderr are kept apart. Raises AssertionError with the output when it fails."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder or self.folder,
            env={**self.environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            words = " ".join(str(word) for word in command)
            raise AssertionError(
                f"`{words}` ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            )
        return done

    def docker(
        self, *words: str | Path, timeout: float = 300.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """``docker WORDS``."""
        return self.run(["docker", *words], timeout=timeout, check=check)

    def __enter__(self) -> Engine:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self, *, in_memory: bool) -> list[str | Path]:
        """The engine in namespaces of its own. in_memory: images are quicker to write there, and gone at once."""
        mounts: list[str] = []
        for name in _WRITTEN:
            upper, work = (self._run / name / part for part in ("upper", "work"))
            for folder in (upper, work):
                folder.mkdir(parents=True)
            mounts.append(f"mount -t overlay -o lowerdir=/{name},upperdir={upper},workdir={work} overlay /{name}")
        if in_memory:
            mounts.append(f"mount -t tmpfs -o size={_DISK_BYTES} tmpfs {self.folder}/data")
        script = f'{" && ".join(mounts)} && exec "$@"'
        return [
            # Whatever happens to this process, the kernel ends what follows.
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--mount-proc", "--kill-child"),
            *("sh", "-c", script, "sh", self.tools / "usr" / "bin" / "tini-static", "--"),
            *("dockerd", "--config-file", self.folder / "engine.json", "--data-root", self.folder / "data"),
            *("--exec-root", self._run / "exec", "--pidfile", self._run / "docker.pid", "--group", "root"),
            *("--host", f"unix://{self._socket}", "--cgroup-parent", f"/{self._group}"),
            # The host's network only: rules of iptables would outlive the engine.
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"),
            *("--storage-driver", "overlay2"),
        ]

    def _remove_containers(self) -> None:
        """Also those that a killed run left in a kept folder: their restart policy has just started them again."""
        names = self.run(["docker", "ps", "--all", "--quiet"], check=False).stdout.split()
        if names:
            self.run(["docker", "rm", "--force", "--volumes", *names], check=False)

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _run(self) -> Path:
        return self.folder / "run"

    @property
    def _socket(self) -> Path:
        return self._run / "docker.sock"

    @property
    def _group(self) -> str:
        """Control group of the containers, the folder's name."""
        return self.folder.name

    def unpack(self) -> None:
        """Download the packages through a view of apt that touches nothing of the system's, and unpack them.

        Raises EngineUnavailableError with the reason.
        """
        if (self.tools / ".complete").exists():
            return
        if _os_release().get("ID") != "debian" or not _KEYRING.exists():
            raise EngineUnavailableError("it is unpacked from Debian's packages, and this is no Debian")
        apt = self.folder / "apt"
        for part in ("lists/partial", "archives/partial", "sources"):
            (apt / part).mkdir(parents=True, exist_ok=True)
        source = f"deb [signed-by={_KEYRING}] {debian_mirror()}"
        releases = (_ENGINE_RELEASE, BASE_RELEASE)
        (apt / "sources.list").write_text("".join(f"{source} {release} main\n" for release in releases))
        (apt / "apt.conf").write_text(
            f'Dir::State::lists "{apt}/lists";\nDir::Cache "{apt}";\nDir::Etc::sourcelist "{apt}/sources.list";\n'
            f'Dir::Etc::sourceparts "{apt}/sources";\nAPT::Sandbox::User "root";\nAcquire::Languages "none";\n'
        )
        packages = [
            *(f"{name}/{_ENGINE_RELEASE}" for name in _ENGINE_PACKAGES),
            *(f"{name}/{BASE_RELEASE}" for name in _OTHER_PACKAGES),
        ]
        for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", *packages]):
            done = subprocess.run(
                command,
                cwd=apt / "archives",
                env={**os.environ, "APT_CONFIG": str(apt / "apt.conf")},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise EngineUnavailableError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        for package in (apt / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(self.tools)], check=True)
        shutil.rmtree(apt)
        plugins = self.folder / "home" / ".docker" / "cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        for plugin in (self.tools / "usr" / "libexec" / "docker" / "cli-plugins").iterdir():
            (plugins / plugin.name).symlink_to(plugin)
        # What makes the engine accept a reservation of NVIDIA GPUs; there is no GPU behind it.
        hook = self.tools / "usr" / "local" / "bin" / "nvidia-container-runtime-hook"
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text("#!/bin/sh\nexit 0\n")
        hook.chmod(0o755)
        (self.tools / ".complete").touch()


def debian_mirror() -> str:
    """Where this machine gets the packages of its own release from."""
    release = _os_release().get("VERSION_CODENAME", "")
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        uri, _, name = line.partition("|")
        if name == release:
            return uri
    raise EngineUnavailableError(f"apt has no source of packages for Debian {release}")


def clean_stale(parent: Path | None = None) -> list[Path]:
    """Remove what killed runs left, control groups and folders; returns the folders."""
    removed: list[Path] = []
    for folder in sorted((parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*")):
        lock = _try_lock(folder) if folder.stat().st_uid == os.getuid() else None
        if lock is None:
            continue
        _remove(folder)
        os.close(lock)
        removed.append(folder)
    return removed


def _free_memory() -> int:
    """Bytes that processes can have without swapping."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024


def _os_release() -> dict[str, str]:
    path = Path("/etc/os-release")
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def _try_lock(folder: Path) -> int | None:
    """File descriptor of the folder's lock, None when a living process holds it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a killed engine's folder; the kernel may still be at ending its processes."""
    deadline = time.monotonic() + _STOP_S
    while True:
        try:
            _remove_groups(folder.name)
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _remove_groups(name: str) -> None:
    """Remove the empty control groups that the engine made, in every hierarchy."""
    for group in sorted(Path("/sys/fs/cgroup").glob(f"**/{name}"), reverse=True):
        for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        group.rmdir()


def main() -> int:
    """Start an engine, say how to talk to it, and stop it on Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run the tests' Docker engine by hand.")
    parser.add_argument("folder", type=Path, help="gets tools and images, and is kept")
    with Engine(parser.parse_args().folder.resolve()) as engine, contextlib.suppress(KeyboardInterrupt):
        for name, value in engine.environment.items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.flush()
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
