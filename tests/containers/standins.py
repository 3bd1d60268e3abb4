"""Images under the public names that the Dockerfiles start from, made here, as no registry is asked.

``ros:jazzy-ros-base`` is Debian with the ROS 2 wheels of the environment that runs the tests laid out like
/opt/ros/jazzy, and empty packages under the names of ROS's from apt. ``nvidia/cuda:…`` is plain Debian without CUDA.
How registries are reached (certificates, pip.conf, wheels on disk) is in these images alone; the Dockerfiles and the
compose file carry nothing of it.
"""

from __future__ import annotations

import configparser
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from tests.containers.engine import BASE_RELEASE, Engine, debian_mirror

ROS_DISTRO = "jazzy"
ROS_IMAGE = f"ros:{ROS_DISTRO}-ros-base"
_BASE = "standin/debian"
_PYTHON = "python3.11"
_PACKAGE = re.compile(r"ros-\$\{?ROS_DISTRO\}?-([a-z0-9-]+)")
_CUDA = re.compile(r"^ARG CUDA_VERSION=(\S+)", re.MULTILINE)

# Of the public ros-base image: what its Python packages need, and what builds a workspace.
_ROS_APT = ("python3", "python3-numpy", "python3-yaml", "python3-setuptools", "python3-lark")
_COLCON = "colcon-common-extensions"

_DOCKERFILE = f"""\
FROM {_BASE}
RUN apt-get update && apt-get install -y --no-install-recommends {" ".join(_ROS_APT)} && rm -rf /var/lib/apt/lists/*
COPY . /
ENV ROS_DISTRO={ROS_DISTRO} LANG=C.UTF-8
ENTRYPOINT ["/ros_entrypoint.sh"]
CMD ["bash"]
"""
_SETUP = f"""\
export ROS_DISTRO={ROS_DISTRO} ROS_VERSION=2 ROS_PYTHON_VERSION=3
export AMENT_PREFIX_PATH=/opt/ros/{ROS_DISTRO}${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}
export PYTHONPATH=/opt/ros/{ROS_DISTRO}/lib/{_PYTHON}/site-packages${{PYTHONPATH:+:$PYTHONPATH}}
for folder in /opt/ros/{ROS_DISTRO}/lib /opt/ros/{ROS_DISTRO}/lib/{_PYTHON}/site-packages/ros_*.libs; do
  LD_LIBRARY_PATH=$folder${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}
done
export LD_LIBRARY_PATH
"""
_ENTRYPOINT = f"""\
#!/bin/bash
set -e
source /opt/ros/{ROS_DISTRO}/setup.bash --
exec "$@"
"""
_COLCON_SCRIPT = """\
#!/usr/bin/python3
import sys

from colcon_core.command import main

sys.exit(main())
"""


def make_base_images(engine: Engine, checkout: Path) -> None:
    """Make the images that the Dockerfiles of ``checkout`` start from; what is there already is kept."""
    images = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    cuda = _CUDA.search((checkout / "Dockerfile.train").read_text())
    assert cuda is not None, "Dockerfile.train has no ARG CUDA_VERSION=…"
    cuda_image = f"nvidia/cuda:{cuda[1]}-cudnn-devel-ubuntu22.04"
    if f"{_BASE}:latest" not in images:
        _import_debian(engine)
    if cuda_image not in images:
        engine.docker("tag", _BASE, cuda_image)
    if ROS_IMAGE not in images:
        _build_ros(engine, _PACKAGE.findall((checkout / "Dockerfile.ros").read_text()))


def _import_debian(engine: Engine) -> None:
    """Bootstrap a Debian with the host's way to packages, and import it."""
    root, rootfs = engine.folder / "debian", engine.folder / "debian.tar"
    extra = engine.folder / "extra"
    shutil.rmtree(extra, ignore_errors=True)
    _copy_host_settings(extra)
    options = [f"--aptopt={path}" for path in Path("/etc/apt/apt.conf.d").iterdir() if "Acquire::" in path.read_text()]
    engine.run(
        [
            *("perl", engine.tools / "usr/bin/mmdebstrap", "--mode=root", "--variant=minbase"),
            *("--include=ca-certificates", "--dpkgopt=force-unsafe-io", *options),
            f"--customize-hook=copy-in {' '.join(str(path) for path in sorted(extra.iterdir()))} /",
            "--customize-hook=chroot $1 update-ca-certificates",
            *(BASE_RELEASE, rootfs, debian_mirror()),
        ],
        variables={"TMPDIR": str(engine.folder)},
    )
    engine.docker("import", "--change", 'CMD ["bash"]', rootfs, _BASE)
    rootfs.unlink()
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(extra)


def _copy_host_settings(extra: Path) -> None:
    """Lay out below ``extra`` what a container needs to reach the registries that this machine reaches."""
    certificates = Path("/usr/local/share/ca-certificates")
    (extra / "usr" / certificates.relative_to("/usr").parent).mkdir(parents=True)
    shutil.copytree(certificates, extra / certificates.relative_to("/"))
    settings = configparser.RawConfigParser()
    settings.read("/etc/pip.conf")
    if not settings.has_section("global"):
        settings.add_section("global")
    wheels = [wheel for folder in _wheel_folders() for wheel in folder.glob("torch-*+cpu-*.whl")]
    if wheels:
        # On a machine that has torch for CPUs on disk; on others pip finds it as for a user.
        (extra / "opt" / "wheels").mkdir(parents=True)
        for wheel in wheels:
            os.link(wheel, extra / "opt" / "wheels" / wheel.name)
        settings.set("global", "find-links", "/opt/wheels")
        # PyTorch's own index, which the Dockerfiles name, is as a rule out of reach there.
        settings.set("global", "retries", "1")
    (extra / "etc").mkdir()
    with (extra / "etc" / "pip.conf").open("w") as file:
        settings.write(file)


def _wheel_folders() -> list[Path]:
    words = os.environ.get("PIP_FIND_LINKS", "").split()
    return [Path(word) for word in words if Path(word).is_dir()]


def _build_ros(engine: Engine, packages: Iterable[str]) -> None:
    context = engine.folder / "ros"
    shutil.rmtree(context, ignore_errors=True)
    prefix = context / "opt" / "ros" / ROS_DISTRO
    names = {name for name in _installed() if name.startswith("ros-")}
    copy_distributions(names, prefix)
    for name in ("setup.bash", "setup.sh", "local_setup.bash", "local_setup.sh"):
        (prefix / name).write_text(_SETUP)
    copy_distributions(_closure(_COLCON) - names, context / "usr" / "local", packages_folder="dist-packages")
    _write_script(context / "usr" / "bin" / "colcon", _COLCON_SCRIPT)
    _write_script(context / "ros_entrypoint.sh", _ENTRYPOINT)
    _write_packages(context / "opt" / "standin-debs", [f"ros-{ROS_DISTRO}-{name}" for name in packages])
    sources = context / "etc" / "apt" / "sources.list.d" / "standin.list"
    sources.parent.mkdir(parents=True)
    sources.write_text("deb [trusted=yes] file:/opt/standin-debs ./\n")
    (context / "Dockerfile").write_text(_DOCKERFILE)
    (context / ".dockerignore").write_text("Dockerfile\n.dockerignore\n")
    engine.docker("build", "--network", "host", "--tag", ROS_IMAGE, context)
    shutil.rmtree(context)


def _write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _write_packages(folder: Path, names: Iterable[str]) -> None:
    """A local apt repository of empty packages."""
    folder.mkdir(parents=True)
    index: list[str] = []
    for name in sorted(set(names)):
        control = (
            f"Package: {name}\nVersion: 0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
            "Description: stand-in\n"
        )
        tree = folder / name
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(control)
        deb = folder / f"{name}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "--build", "-Znone", tree, deb], check=True, capture_output=True
        )
        shutil.rmtree(tree)
        data = deb.read_bytes()
        index.append(
            f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
    (folder / "Packages").write_text("\n".join(index))


# -- distributions of the environment that runs the tests -------------------------------------------------------------


def copy_distributions(names: Iterable[str], prefix: Path, *, packages_folder: str = "site-packages") -> None:
    """Copy installed distributions into ``prefix``/lib/python3.11/``packages_folder``, their data into ``prefix``."""
    target = prefix / "lib" / _PYTHON / packages_folder
    for name in sorted(names):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            parts = file.parts
            if "__pycache__" in parts or parts[-1].endswith(".pth"):
                continue
            destination = Path(os.path.normpath(target / file))
            # Scripts begin with the path of the environment's own Python.
            if destination.is_relative_to(prefix / "bin") or not destination.is_relative_to(prefix):
                continue
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(str(distribution.locate_file(file))), destination)


def _installed() -> set[str]:
    return {_normal(distribution.metadata["Name"]) for distribution in importlib.metadata.distributions()}


def _closure(name: str) -> set[str]:
    """The distribution and everything it requires here."""
    found: set[str] = set()
    queue = [name]
    while queue:
        present = _normal(queue.pop())
        if present in found:
            continue
        found.add(present)
        for text in importlib.metadata.requires(present) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
