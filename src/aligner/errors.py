"""The one exception that is meant for people."""


class InputError(ValueError):
    """Something that the user can mend: the message says what is wrong, why, and the next command. Shown without traceback."""
