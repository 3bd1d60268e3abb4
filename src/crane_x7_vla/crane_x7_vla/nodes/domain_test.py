from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes import domain as domain_module
from crane_x7_vla.nodes.domain import environment, requested_domain, take_domain

HOLD = """
import sys, time
from pathlib import Path
from crane_x7_vla.nodes.domain import take_domain
domain = take_domain(folder=Path(sys.argv[1]))
print(domain.number, flush=True)
time.sleep(60)
"""


def test_two_runs_get_two_domains_and_a_released_one_is_free_again(tmp_path: Path) -> None:
    with take_domain(folder=tmp_path) as first, take_domain(folder=tmp_path) as second:
        assert first.number != second.number
    with take_domain(first.number, folder=tmp_path) as again:
        assert again.number == first.number


def test_a_domain_of_another_process_is_refused_until_it_dies(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        with pytest.raises(ConfigError, match=rf"domain {number} is in use by another run .*process {process.pid}\)"):
            take_domain(number, folder=tmp_path)
        with take_domain(folder=tmp_path) as other:
            assert other.number != number
    finally:
        process.kill()
        process.wait()
    take_domain(number, folder=tmp_path).release()


def test_a_domain_with_foreign_nodes_is_not_chosen_and_said_to_be_shared_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken for real as well, so that no other run on this machine puts its nodes into it meanwhile.
    with take_domain() as reserved:
        number = reserved.number
        monkeypatch.setattr(domain_module, "_FIRST_CHOICE", number)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
            # The port at which the first participant of the domain listens.
            foreign.bind(("127.0.0.1", 7400 + 250 * number + 10))
            with take_domain(number, folder=tmp_path) as asked_for:
                assert asked_for.shared
            with take_domain(folder=tmp_path) as other:
                assert other.number > number
                assert not other.shared
        with take_domain(number, folder=tmp_path) as alone:
            assert not alone.shared


def test_what_others_put_where_the_locks_are_is_not_written_to(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "42.lock").symlink_to(mine)
    (locks / "43.lock").hardlink_to(mine)
    os.mkfifo(locks / "44.lock")
    (locks / "45.lock").mkdir()
    for number in (42, 43, 44, 45):
        with pytest.raises(ConfigError, match=rf"{number}\.lock .*; remove it, or set TMPDIR"):
            take_domain(number, folder=locks)
    (tmp_path / "elsewhere").symlink_to(locks)
    with pytest.raises(ConfigError, match="not a plain file"):
        take_domain(46, folder=tmp_path / "elsewhere")
    assert mine.read_text() == "precious"


def test_no_free_domain_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_module, "_domains_with_sockets", lambda: set(range(200)))
    with pytest.raises(ConfigError, match="every ROS domain from 20 to 101 is in use"):
        take_domain(folder=tmp_path)


def test_requested_domain() -> None:
    assert requested_domain({}) is None
    assert requested_domain({"ROS_DOMAIN_ID": ""}) is None
    assert requested_domain({"ROS_DOMAIN_ID": "42"}) == 42
    for text in ("abc", "-1", "102", "1.5"):
        with pytest.raises(ConfigError, match=f"ROS_DOMAIN_ID is '{text}'"):
            requested_domain({"ROS_DOMAIN_ID": text})


def test_nodes_stay_on_this_machine() -> None:
    assert environment(7, distribution="jazzy") == {
        "ROS_DOMAIN_ID": "7",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    assert environment(7, distribution="humble") == {"ROS_DOMAIN_ID": "7", "ROS_LOCALHOST_ONLY": "1"}
