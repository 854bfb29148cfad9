"""Errors that the user can fix: the stage ends with their message and no traceback."""

from __future__ import annotations


class InputError(ValueError):
    """An error that the user can fix; the message says what is wrong, why, and which command to run next."""
