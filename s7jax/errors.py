"""The two ways a user can be told no. Programmer errors are assertions, not these."""


class UsageError(ValueError):
    """The command line or configuration asks for something impossible (exit code 2).

    The message says which flag or field, what was given, what was expected and what to do.
    """


class InputError(ValueError):
    """A file or folder does not hold what it must (exit code 1).

    The message says where (path, and line or offset), what was found and what to do.
    """
