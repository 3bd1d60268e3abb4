"""Errors that the user can mend: one line that says what is wrong, what was expected and what to type next.

Commands print them without a traceback and exit with 2. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting is missing, unknown, contradictory or out of range."""


class DataError(ValueError):
    """Recorded data are missing, damaged, or do not fit the robot, the cameras or the model."""


class CheckpointError(ValueError):
    """A model directory is missing, incomplete, or does not fit what it is used for."""


USER_ERRORS = (ConfigError, DataError, CheckpointError)
