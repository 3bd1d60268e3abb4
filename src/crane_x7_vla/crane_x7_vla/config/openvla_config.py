"""The config classes of the openvla backend, under the path of the Python API."""

from crane_x7_vla.backends.openvla.config import OpenVLAConfig, OpenVLASpecificConfig

__all__ = ["OpenVLAConfig", "OpenVLASpecificConfig"]
