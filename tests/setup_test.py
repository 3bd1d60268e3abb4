"""What a new user reads when the machine lacks something: one line, and what to type."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of stand-in commands, first on PATH: Python 3.11 with ensurepip, an ordinary user without sudo."""
    commands = {
        "python3.11": '#!/bin/sh\ncase "$2" in *version_info*) echo 3.11;; esac\n',
        "id": "#!/bin/sh\necho 1000\n",
        "sudo": "#!/bin/sh\nexit 1\n",
        "ldconfig": "#!/bin/sh\necho libOSMesa.so.8\n",
        "uname": "#!/bin/sh\necho x86_64\n",
        "df": "#!/bin/sh\necho header\necho disk 1 1 1000 1 /\n",
    }
    for name, text in commands.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def run_setup(machine: Path, python: str = "python3.11") -> subprocess.CompletedProcess[str]:
    """Run a copy of the script in a folder of its own, so that nothing of this checkout is touched."""
    folder = machine / "checkout"
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "requirements", folder / "requirements", dirs_exist_ok=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", folder / "scripts" / "setup.sh")
    (folder / "src" / "package").mkdir(parents=True, exist_ok=True)
    (folder / "src" / "package" / "setup.py").touch()
    environment = {"PATH": f"{machine}:{os.environ['PATH']}", "PYTHON": python, "HOME": str(machine)}
    return subprocess.run(
        [str(folder / "scripts" / "setup.sh")], env=environment, capture_output=True, text=True, check=False
    )


def test_a_missing_python_names_the_package_and_the_setting(machine: Path) -> None:
    done = run_setup(machine, python="python3.11-that-is-not-here")
    assert done.returncode == 2
    assert "not found. Install Python 3.11 (Debian 12: apt-get install python3.11 python3.11-venv; else" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_another_python_is_refused_by_its_version(machine: Path) -> None:
    (machine / "python3.10").write_text("#!/bin/sh\necho 3.10\n")
    (machine / "python3.10").chmod(0o755)
    done = run_setup(machine, python="python3.10")
    assert done.returncode == 2
    assert "python3.10 is Python 3.10, the pinned wheels are for 3.11" in done.stderr


def test_an_arm_machine_is_told_what_it_can_use(machine: Path) -> None:
    (machine / "uname").write_text("#!/bin/sh\necho aarch64\n")
    done = run_setup(machine)
    assert done.returncode == 2
    assert "aarch64 machine" in done.stderr
    assert "see With ROS 2 from apt in docs/ros_interface.md" in done.stderr


def test_missing_system_packages_are_printed_as_a_line_to_type(machine: Path) -> None:
    (machine / "ldconfig").write_text("#!/bin/sh\nexit 0\n")
    done = run_setup(machine)
    assert done.returncode == 2
    assert "type: sudo apt-get install -y --no-install-recommends libosmesa6" in done.stderr


def test_a_full_disk_is_told_before_anything_is_installed(machine: Path) -> None:
    done = run_setup(machine)
    assert done.returncode == 2
    assert "only 1 MB free here, the environment needs" in done.stderr
    assert not (machine / "checkout" / ".venv").exists()
