"""Press a button of a running node where there is no ``ros2`` command: python -m crane_x7_bringup.call recorder/start.

Calls a std_srvs/Trigger service, or with true or false a std_srvs/SetBool one, in the domain of ROS_DOMAIN_ID.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from crane_x7_bringup.domain import requested_domain
from crane_x7_bringup.session import Session
from crane_x7_vla.errors import USER_ERRORS


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the node agreed, 2 with its reason when it refused or did not answer."""
    parser = argparse.ArgumentParser(prog="python -m crane_x7_bringup.call", description="Call a service of a node.")
    parser.add_argument("service", help="such as recorder/start, recorder/stop, recorder/discard, lift/reset")
    parser.add_argument("value", nargs="?", choices=("true", "false"), help="for services that take a yes or no")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        with Session(requested_domain(os.environ) or 0, name="call") as session:
            wait = options.timeout
            if options.value is None:
                answer = session.call_trigger(options.service, timeout=wait, discovery=wait)
            else:
                yes = options.value == "true"
                answer = session.call_bool(options.service, value=yes, timeout=wait, discovery=wait)
    except USER_ERRORS as error:
        sys.stderr.write(f"call: {error}\n")
        return 2
    except TimeoutError as error:
        domain = os.environ.get("ROS_DOMAIN_ID") or "0, as ROS_DOMAIN_ID is not set"
        sys.stderr.write(
            f"call: {error} in ROS domain {domain}. Is the node running, and in this domain? "
            "`crane_x7_bringup.up` prints the domain it runs in\n"
        )
        return 2
    sys.stdout.write(f"{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
