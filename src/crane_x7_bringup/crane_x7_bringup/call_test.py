"""The buttons of running nodes, pressed as a person without ``ros2`` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crane_x7_bringup.domain import take_domain
from crane_x7_bringup.profiles import configured, find_profile
from crane_x7_bringup.supervisor import Supervisor

pytestmark = pytest.mark.ros


def call(domain: int, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_bringup.call", *words],
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_service_of_a_running_node_answers(tmp_path: Path) -> None:
    (sim,) = configured(find_profile("sim"), ["lockstep:=true", "seed:=7", "sim.cameras:=[]"])
    with take_domain() as domain, Supervisor([sim], domain=domain.number, log_dir=tmp_path):
        done = call(domain.number, "lift/reset", "--timeout", "120")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seed"] == 7


def test_a_service_that_nobody_offers_says_where_it_looked() -> None:
    with take_domain() as domain:
        done = call(domain.number, "recorder/start", "--timeout", "0.5")
        assert done.returncode == 2
        assert f"service recorder/start in ROS domain {domain.number}" in done.stderr
        assert "Is the node running, and in this domain?" in done.stderr
