from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crane_x7_bringup.profiles import configured, find_profile
from crane_x7_bringup.up import image_variables
from crane_x7_vla.nodes.domain import take_domain

SIM = ["sim", "sim.cameras:=[]"]


def command(tmp_path: Path, *words: str, domain: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {"ROS_DOMAIN_ID": domain}
    return subprocess.Popen(
        [sys.executable, "-m", "crane_x7_bringup.up", *words, "--log-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def lines_until(process: subprocess.Popen[str], text: str) -> str:
    """Everything it says up to the line that has ``text``."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"'{text}' not in: {said} {process.communicate()}")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, f"process {pid} is left behind"
            time.sleep(0.01)


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = command(tmp_path, *SIM)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.ros
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_with_zero(sim: subprocess.Popen[str], number: int) -> None:
    said = lines_until(sim, "[sim] ")
    assert re.search(r"ROS domain \d+, join it with: export ROS_DOMAIN_ID=\d+", said)
    nodes = children(sim.pid)
    assert len(nodes) == 1
    sim.send_signal(number)
    _, err = sim.communicate(timeout=30)
    assert sim.returncode == 0, err
    assert err == ""
    wait_gone(nodes)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sim.log").symlink_to("/dev/full")
    process = command(tmp_path, *SIM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith(f"error: the log {tmp_path}/sim.log cannot be written: No space left on device")
    assert err.count("\n") == 1


@pytest.mark.ros
def test_killing_the_command_leaves_nothing_behind(sim: subprocess.Popen[str]) -> None:
    lines_until(sim, "[sim] ")
    nodes = children(sim.pid)
    assert nodes
    sim.kill()
    sim.wait()
    wait_gone(nodes)


@pytest.mark.ros
def test_a_node_that_dies_is_named_and_its_code_returned(sim: subprocess.Popen[str]) -> None:
    lines_until(sim, "[sim] ")
    os.kill(children(sim.pid)[0], signal.SIGKILL)
    _, err = sim.communicate(timeout=30)
    assert sim.returncode == 137
    assert err.startswith("error: node sim ended with signal SIGKILL")
    assert err.count("\n") == 1


@pytest.mark.ros
def test_a_model_that_is_an_adapter_folder_ends_the_simulator_too(tmp_path: Path) -> None:
    adapters = tmp_path / "outputs" / "mine" / "checkpoint-7" / "lora_adapters"
    adapters.mkdir(parents=True)
    (adapters / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    process = command(tmp_path / "log", "vla-sim", "sim.cameras:=[]", f"model_path:={adapters}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert "node vla_inference ended with exit code 2: vla_inference: Failed to load VLA model" in err
    assert "python -m crane_x7_vla.scripts.merge_lora --adapter_path" in err
    assert "Traceback" not in out + err


def test_a_domain_in_use_by_another_run_is_one_line(tmp_path: Path) -> None:
    with take_domain() as domain:
        process = command(tmp_path, *SIM, domain=str(domain.number))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith(f"error: ROS domain {domain.number} is in use by another run of this suite")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "domain", "line"),
    [
        (["real"], "", "error: unknown profile 'real'"),
        (["sim", "speed:=1"], "", "error: unknown argument 'speed'"),
        (["sim"], "999", "error: ROS_DOMAIN_ID is '999', expected a number from 0 to 101"),
    ],
)
def test_what_the_user_can_mend_is_one_line(tmp_path: Path, words: list[str], domain: str, line: str) -> None:
    process = command(tmp_path, *words, domain=domain)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_help_lists_profiles_and_arguments(tmp_path: Path) -> None:
    out, _ = command(tmp_path, "--help").communicate(timeout=30)
    for text in ("log-sim:", "vla-sim:", "lockstep:=false", "model_path:=…", "data/tfrecord_logs"):
        assert text in out


def test_big_images_get_bigger_buffers_where_there_is_room(tmp_path: Path) -> None:
    small = configured(find_profile("sim"), [])
    big = configured(find_profile("sim"), ["sim.image_width:=640", "sim.image_height:=480"])
    assert image_variables(small, tmp_path) == {}
    variables = image_variables(big, tmp_path)
    assert Path(variables["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
