"""The config classes of the minivla backend, under the path of the Python API."""

from crane_x7_vla.backends.minivla.config import MiniVLAConfig, MiniVLASpecificConfig

__all__ = ["MiniVLAConfig", "MiniVLASpecificConfig"]
