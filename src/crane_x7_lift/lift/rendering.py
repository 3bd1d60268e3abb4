"""Choosing how to render without a screen: MUJOCO_GL, which MuJoCo reads when it is imported."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path

from crane_x7_vla.errors import ConfigError

INSTALL_HINT = "apt-get install --no-install-recommends libosmesa6"

_EGL, _OSMESA = "libEGL.so.1", "libOSMesa.so.8"
# PyOpenGL takes either for OpenGL itself; libEGL.so.1 alone does not even let MuJoCo be imported.
_OPENGL = ("libOpenGL.so.0", "libGL.so.1")
# What MuJoCo takes for "a window system".
_WINDOWS = ("glfw", "glx", "on", "enable", "enabled", "true", "1")
_DISABLED = "disable"
_EGL_PLATFORM_DEVICE_EXT = 0x313F
_MOST_DEVICES = 32


def choose_gl() -> str:
    """The value MUJOCO_GL has or gets: the user's own, ``egl`` where a GPU's driver starts, else ``osmesa``, else
    ``egl`` with Mesa's software renderer.

    Sets LP_NUM_THREADS=0 unless it is set: Mesa's software renderer then draws in the calling thread, which costs
    nothing at camera sizes and leaves the other cores to others. Raises ConfigError when no library can render.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen:
        chosen = _find()
        os.environ["MUJOCO_GL"] = chosen
    elif chosen not in ("egl", "osmesa", *_WINDOWS):
        raise ConfigError(
            f"MUJOCO_GL is '{chosen}', which renders nothing; expected egl or osmesa. Unset it to have one chosen"
        )
    elif (chosen == "egl" and not _has_egl()) or (chosen == "osmesa" and not _loads(_OSMESA)):
        wanted = f"{_EGL} with {_OPENGL[1]}" if chosen == "egl" else _OSMESA
        raise ConfigError(
            f"MUJOCO_GL is '{chosen}', but {wanted} cannot be loaded. Install Mesa's software renderer with: "
            f"{INSTALL_HINT}, then unset MUJOCO_GL"
        )
    # Where MuJoCo was imported with another choice, or with none, only this part of it read MUJOCO_GL.
    loaded = sys.modules.get("mujoco.rendering.classic.gl_context")
    if loaded is not None and chosen in ("egl", "osmesa") and loaded.GLContext.__module__ != f"mujoco.{chosen}":
        importlib.reload(loaded)
    return chosen


def choose_no_gl() -> None:
    """For what renders nothing: a MUJOCO_GL with which MuJoCo could not even be imported is set to ``disable``."""
    if os.environ.get("MUJOCO_GL"):
        try:
            choose_gl()
        except ConfigError:
            os.environ["MUJOCO_GL"] = _DISABLED


def _find() -> str:
    osmesa, egl = _loads(_OSMESA), _has_egl()
    if egl and (not osmesa or (has_gpu() and _egl_starts())):
        return "egl"
    if osmesa:
        return "osmesa"
    raise ConfigError(
        f"no OpenGL library to render camera images with: neither {_EGL} + {_OPENGL[1]} nor {_OSMESA} can be loaded. "
        f"Install one with: {INSTALL_HINT}"
    )


def has_gpu() -> bool:
    """Whether a device node of a GPU is there."""
    return Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("renderD*"))


def _has_egl() -> bool:
    return _loads(_EGL) and any(_loads(name) for name in _OPENGL)


def _egl_starts() -> bool:
    """Whether EGL finds a device and its driver starts; a container may see a GPU without its graphics libraries."""
    library = ctypes.CDLL(_EGL)
    library.eglGetProcAddress.restype = ctypes.c_void_p
    query = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    get_display = library.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not get_display:
        return False
    devices, count = (ctypes.c_void_p * _MOST_DEVICES)(), ctypes.c_int()
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    if not query_devices(_MOST_DEVICES, devices, ctypes.byref(count)):
        return False
    platform_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(get_display)
    library.eglInitialize.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    library.eglTerminate.argtypes = (ctypes.c_void_p,)
    for device in devices[: count.value]:
        display = platform_display(_EGL_PLATFORM_DEVICE_EXT, device, None)
        if display and library.eglInitialize(display, None, None):
            library.eglTerminate(display)
            return True
    return False


def _loads(name: str) -> bool:
    """Load a library for good, if it is there.

    It keeps to its own symbols: Mesa's LLVM would else take TensorFlow's, where that is loaded, and crash. (TensorFlow
    must come first: PyOpenGL shows Mesa's symbols to all that is loaded after it.)
    """
    try:
        ctypes.CDLL(name, mode=ctypes.DEFAULT_MODE | os.RTLD_DEEPBIND)
    except OSError:
        return False
    return True
