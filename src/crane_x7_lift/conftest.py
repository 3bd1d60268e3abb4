"""Tests render in software, so that images are alike on every machine, and beside TensorFlow (``lift.rendering``)."""

from __future__ import annotations

import ctypes
import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def software_rendering() -> None:
    """MUJOCO_GL as the user set it, else OSMesa where it is there."""
    try:
        ctypes.CDLL("libOSMesa.so.8", mode=ctypes.DEFAULT_MODE | os.RTLD_DEEPBIND)
    except OSError:
        return
    os.environ.setdefault("MUJOCO_GL", "osmesa")
