"""Exit code 0 when every camera that .env names sends images: python3 -m crane_x7_bringup.camera_health

The health check of the cameras' container: their drivers are not nodes of this suite and write no status file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence

from sensor_msgs.msg import Image

from crane_x7_bringup.environment import VARIABLES
from crane_x7_bringup.health import UNHEALTHY
from crane_x7_bringup.session import Session
from crane_x7_vla.command import run_command
from crane_x7_vla.nodes.domain import requested_domain
from crane_x7_vla.nodes.messages import sensor_qos
from crane_x7_vla.protocol import camera_topic

CAMERAS = ("primary", "wrist")
# Below the health check's own limit, after which nothing would be said.
_TIMEOUT_S = 10.0


def topics(environ: Mapping[str, str]) -> list[str]:
    """Image topics of the cameras that have a serial number or a device."""
    return [
        camera_topic(camera)
        for camera in CAMERAS
        if any(VARIABLES[f"{camera.upper()}_CAMERA_{way}"].value(environ) for way in ("SERIAL", "DEVICE"))
    ]


def silent(session: Session, expected: Sequence[str], *, timeout: float = _TIMEOUT_S) -> list[str]:
    """Those of the topics on which no image comes within ``timeout`` s."""
    heard: set[str] = set()
    for topic in expected:
        session.subscribe(Image, topic, lambda _, topic=topic: heard.add(topic), sensor_qos(lockstep=False))
    with contextlib.suppress(TimeoutError):
        session.wait_until(lambda: heard.issuperset(expected), "images", timeout=timeout)
    return [topic for topic in expected if topic not in heard]


def _check(argv: Sequence[str] | None) -> int:
    argparse.ArgumentParser(prog="python3 -m crane_x7_bringup.camera_health", description=__doc__).parse_args(argv)
    with Session(requested_domain(os.environ) or 0, name="camera_health") as session:
        missing = silent(session, topics(os.environ))
    sys.stdout.write("".join(f"no image on {topic}\n" for topic in missing) or "healthy\n")
    return UNHEALTHY if missing else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 healthy, 1 not, 2 for what the user can mend."""
    return run_command(lambda: _check(argv))


if __name__ == "__main__":
    sys.exit(main())
