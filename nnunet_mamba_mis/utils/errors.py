"""The one exception that commands turn into a message and exit status 1."""


class UserError(Exception):
    """A problem the user can solve: its text names the file or value and the way out."""
