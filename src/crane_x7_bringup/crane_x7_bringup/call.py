"""Press a button of a running node where there is no ``ros2`` command, or set its parameters.

python -m crane_x7_bringup.call recorder/start
python -m crane_x7_bringup.call sim seed:=7

Calls a std_srvs/Trigger service, or with true or false a std_srvs/SetBool one, in the domain of ROS_DOMAIN_ID.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from crane_x7_bringup.profiles import parsed_value
from crane_x7_bringup.session import Session
from crane_x7_vla.command import USER_ERROR, run_command
from crane_x7_vla.errors import ConfigError
from crane_x7_vla.nodes.domain import requested_domain

_YES_NO = {"true": True, "false": False}


def call(session: Session, name: str, words: Sequence[str], *, timeout: float) -> str:
    """What the service ``name`` answers, or what was set on the node ``name``.

    words: nothing, ``true`` or ``false`` for a service, ``parameter:=value`` for a node.
    Raises ConfigError for other words, DataError when the node refuses, TimeoutError when there is no answer.
    """
    if not words:
        return session.call_trigger(name, timeout=timeout, discovery=timeout)
    if len(words) == 1 and words[0] in _YES_NO:
        return session.call_bool(name, value=_YES_NO[words[0]], timeout=timeout, discovery=timeout)
    assignments = [word.partition(":=") for word in words]
    for word, (parameter, assigned, _) in zip(words, assignments, strict=True):
        if not parameter or not assigned:
            raise ConfigError(
                f"'{word}' is neither true, false nor PARAMETER:=VALUE; expected such as: recorder/mark_success true, "
                "or: sim seed:=7"
            )
    for parameter, _, text in assignments:
        value = parsed_value(parameter, text)
        if not isinstance(value, bool | int | float | str | list):
            raise ConfigError(f"'{parameter}:={text}' gives no value; expected a number, true, false, text or a list")
        if isinstance(value, list):
            kinds = {type(entry) for entry in value}
            if len(kinds) > 1 or not kinds <= {bool, int, float, str}:
                raise ConfigError(
                    f"'{parameter}:={text}' is a list of different things; expected numbers, or text, or true and "
                    "false, such as [0.5, 1.0]"
                )
        session.set_parameter(name, parameter, value, timeout=timeout, discovery=timeout)
    return f"{name}: {', '.join(words)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the node agreed, 2 with its reason when it refused or did not answer."""
    parser = argparse.ArgumentParser(
        prog="python -m crane_x7_bringup.call",
        description="Call a service of a running node, or set its parameters.",
    )
    parser.add_argument(
        "name",
        help="service, such as recorder/start, recorder/stop, recorder/discard, lift/reset; or node, such as sim",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="true|false|PARAMETER:=VALUE",
        help="for services that take a yes or no; for a node, what is set",
    )
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait (default: %(default)s)")
    options = parser.parse_args(argv)

    def command() -> int:
        try:
            with Session(requested_domain(os.environ) or 0, name="call") as session:
                answer = call(session, options.name, options.words, timeout=options.timeout)
        except TimeoutError as error:
            domain = os.environ.get("ROS_DOMAIN_ID") or "0, as ROS_DOMAIN_ID is not set"
            sys.stderr.write(
                f"error: {error} in ROS domain {domain}. Is the node running, and in this domain? "
                "`crane_x7_bringup.up` prints the domain it runs in\n"
            )
            return USER_ERROR
        sys.stdout.write(f"{answer}\n")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
