"""The config classes of the openvla-oft backend, under the path of the Python API."""

from crane_x7_vla.backends.openvla_oft.config import OpenVLAOFTConfig, OpenVLAOFTSpecificConfig

__all__ = ["OpenVLAOFTConfig", "OpenVLAOFTSpecificConfig"]
