"""Errors that a person can mend: a stage ends with their message and no traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user can mend: the message says what is wrong, why, and the next command. Shown without traceback."""
