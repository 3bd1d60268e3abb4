"""The engine, the images and a user's checkout, once for all tests of the containers."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crane_x7_vla.nodes.domain import take_domain
from tests.containers.checkout import Checkout
from tests.containers.engine import Engine, EngineUnavailableError
from tests.containers.standins import make_base_images

KEEP = "CONTAINER_TESTS_FOLDER"
"""Variable that names a folder for tools and images, so that the next run of these tests is quick."""


@pytest.fixture(scope="session")
def idle_engine() -> Iterator[Engine]:
    """An engine that has not been started; whatever it makes is removed at the end."""
    kept = os.environ.get(KEEP)
    engine = Engine(Path(kept) if kept else None)
    atexit.register(engine.stop)
    yield engine
    engine.stop()
    atexit.unregister(engine.stop)


@pytest.fixture(scope="session")
def tools(idle_engine: Engine) -> Path:
    """Root of the unpacked packages: docker, compose, buildx."""
    return _or_skip(idle_engine.unpack, idle_engine).tools


@pytest.fixture(scope="session")
def engine(idle_engine: Engine) -> Engine:
    """A running engine."""
    return _or_skip(idle_engine.start, idle_engine)


def _or_skip(prepare: Callable[[], None], engine: Engine) -> Engine:
    """Where no engine can run, tests are skipped with the reason; in CI that is a failure."""
    try:
        prepare()
    except EngineUnavailableError as error:
        reason = f"no Docker engine can run here: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return engine


@pytest.fixture(scope="session")
def checkout(engine: Engine) -> Iterator[Checkout]:
    """A clone with a user's .env, in a ROS domain that nobody uses. What a killed run left of it goes with its engine's
    folder, or is replaced here where that is kept."""
    folder = engine.folder / "checkout"
    shutil.rmtree(folder, ignore_errors=True)
    with take_domain() as domain:
        checkout = Checkout(engine, folder)
        checkout.configure({"ROS_DOMAIN_ID": str(domain.number)})
        yield checkout
        checkout.down()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def images(engine: Engine, checkout: Checkout) -> Checkout:
    """The checkout, after ``docker compose build`` of the two Dockerfiles."""
    make_base_images(engine, checkout.folder)
    checkout.build()
    return checkout
