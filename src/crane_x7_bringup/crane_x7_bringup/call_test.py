"""The buttons of running nodes, pressed as a person without ``ros2`` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crane_x7_bringup.profiles import configured, find_profile
from crane_x7_bringup.supervisor import Supervisor
from crane_x7_vla.nodes.domain import take_domain

pytestmark = pytest.mark.ros


def call(domain: int, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crane_x7_bringup.call", *words],
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_parameter_is_set_and_a_service_called(tmp_path: Path) -> None:
    """Recording by hand: another scene for each episode."""
    (sim,) = configured(find_profile("sim"), ["lockstep:=true", "sim.cameras:=[]"])
    with take_domain() as domain, Supervisor([sim], domain=domain.number, log_dir=tmp_path):
        done = call(domain.number, "sim", "seed:=7", "--timeout", "120")
        assert (done.returncode, done.stdout) == (0, "sim: seed:=7\n"), done.stderr
        done = call(domain.number, "lift/reset", "--timeout", "120")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["seed"] == 7
        refused = call(domain.number, "sim", "seeed:=7")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: parameter seeed of sim cannot be set to 7")
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recorder/mark_success", "yes"], "error: 'yes' is neither true, false nor PARAMETER:=VALUE"),
        (["sim", "seed:="], "error: 'seed:=' gives no value"),
        (
            ["sim", "cameras:=[1, two]"],
            "error: 'cameras:=[1, two]' is a list of different things",
        ),
        (["sim", "seed:=[1"], "error: the value of 'seed' cannot be read"),
    ],
)
def test_words_that_say_nothing_are_one_line(words: list[str], line: str) -> None:
    with take_domain() as domain:
        done = call(domain.number, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_service_that_nobody_offers_says_where_it_looked() -> None:
    with take_domain() as domain:
        done = call(domain.number, "recorder/start", "--timeout", "0.5")
        assert done.returncode == 2
        assert f"service recorder/start in ROS domain {domain.number}" in done.stderr
        assert "Is the node running, and in this domain?" in done.stderr
