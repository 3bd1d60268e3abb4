"""A user's checkout of this repository: its files, a .env, and ``docker compose`` typed in its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.containers.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
OVERRIDE = Path(__file__).with_name("override.yml")
# Owner of the checkout: a number that is nobody's, neither here nor in the images.
USER = 4321


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container is. code: of its process, 0 while it runs."""

    state: str
    code: int


class Checkout:
    """The files that git knows, without what was built here; owned by USER."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self.folder = folder
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in listed.stdout.split(b"\0"):
            source = ROOT / os.fsdecode(name)
            if name and source.is_file():
                target = folder / os.fsdecode(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER)
        self.configure({"USER_ID": str(USER), "GROUP_ID": str(USER)})

    def configure(self, values: Mapping[str, str]) -> None:
        """``cp .env.template .env`` where there is none, and set values; each must be in the template."""
        path = self.folder / ".env"
        text = (path if path.exists() else self.folder / ".env.template").read_text()
        for name, value in values.items():
            lines = text.splitlines()
            (index,) = [i for i, line in enumerate(lines) if line.startswith(f"{name}=")]
            lines[index] = f"{name}={value}"
            text = "\n".join(lines) + "\n"
        path.write_text(text)

    def compose(
        self, *words: str | Path, variables: Mapping[str, str] | None = None, timeout: float = 120.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """``docker compose WORDS`` with ``variables`` set in the shell."""
        command = ["docker", "compose", "--file", "docker-compose.yml", "--file", OVERRIDE, *words]
        return self._engine.run(command, folder=self.folder, variables=variables, timeout=timeout, check=check)

    def build(self) -> None:
        """``docker compose build`` of a service per Dockerfile, with torch for CPUs, and not for USER."""
        variables = {"USER_ID": "1000", "GROUP_ID": "1000", "CUDA_SHORT": "cpu"}
        self.compose("build", "recorder", "train", variables=variables, timeout=600.0)

    def up(self, *profiles: str, only: str = "", variables: Mapping[str, str] | None = None) -> None:
        """``docker compose --profile … up --detach``; only: a service without those it depends on."""
        words = [word for profile in profiles for word in ("--profile", profile)]
        services = ("--no-deps", only) if only else ()
        self.compose(*words, "up", "--detach", "--no-build", *services, variables=variables)

    def run(
        self, service: str, *words: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm SERVICE WORDS``; never raises."""
        command = ("run", "--rm", "--no-TTY", "--no-deps", service, *words)
        return self.compose(*command, variables=variables, check=False, timeout=180.0)

    def python(self, service: str, code: str, timeout: float = 120.0) -> str:
        """What Python code prints inside the running container of ``service``, in its ROS environment."""
        words = ("exec", "--no-TTY", service, "in_workspace", "python3", "-c", code)
        return self.compose(*words, timeout=timeout).stdout

    def call(self, service: str, *words: str) -> None:
        """``python -m crane_x7_bringup.call WORDS`` inside the running container of ``service``."""
        command = ("exec", "--no-TTY", service, "in_workspace", "python", "-m", "crane_x7_bringup.call", *words)
        self.compose(*command, "--timeout", "60")

    def services(self) -> dict[str, Ended]:
        """How the containers are, also those that have ended."""
        lines = self.compose("ps", "--all", "--format", "json").stdout.splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["Service"]: Ended(row["State"], row["ExitCode"]) for row in rows}

    def logs(self, *services: str) -> str:
        """What the containers have written."""
        return self.compose("--profile", "*", "logs", "--no-color", "--no-log-prefix", *services).stdout

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
        """Poll ``condition``; raises TimeoutError with the containers' last lines."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:g} s for {what}; {self.services()}\n{self.logs()[-6000:]}")
            time.sleep(0.2)

    def wait_ended(self, service: str, timeout: float = 60.0) -> int:
        """Exit code of the service's container once it has ended."""
        self.wait(lambda: self.services()[service].state == "exited", f"the end of {service}", timeout)
        return self.services()[service].code

    def down(self) -> None:
        """Remove the containers of every profile, and what killed ones left in the host's shared memory."""
        self.compose("--profile", "*", "down", "--timeout", "10")
        for path in Path("/dev/shm").iterdir():
            if path.stat().st_uid == USER:
                path.unlink()
