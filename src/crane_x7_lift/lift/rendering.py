"""Choosing how to render without a screen, before MuJoCo is imported (it reads MUJOCO_GL when it is)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from crane_x7_vla.errors import ConfigError

_EGL = ("libEGL.so.1", "libGL.so.1")
_OSMESA = ("libOSMesa.so.8",)
INSTALL_HINT = "apt-get install --no-install-recommends libosmesa6"


def choose_gl() -> str:
    """The value MUJOCO_GL has or gets: the user's own, ``egl`` where there is a GPU, else ``osmesa``, else ``egl``.

    Sets LP_NUM_THREADS=0 unless it is set: Mesa's software renderer then draws in the calling thread, which costs
    nothing at camera sizes and leaves the other cores to others. Raises ConfigError when no library can render.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if not chosen:
        chosen = _find()
        os.environ["MUJOCO_GL"] = chosen
    return chosen


def _find() -> str:
    egl, osmesa = _loads(*_EGL), _loads(*_OSMESA)
    if egl and (has_gpu() or not osmesa):
        return "egl"
    if osmesa:
        return "osmesa"
    raise ConfigError(
        f"no OpenGL library to render camera images with: neither {' + '.join(_EGL)} nor {_OSMESA[0]} can be loaded. "
        f"Install one with: {INSTALL_HINT}"
    )


def has_gpu() -> bool:
    """Whether a device node of a GPU is there."""
    return Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("renderD*"))


def _loads(*names: str) -> bool:
    try:
        for name in names:
            ctypes.CDLL(name)
    except OSError:
        return False
    return True
