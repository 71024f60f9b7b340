"""The one exception that means: the person at the keyboard can put this right."""


class UserError(ValueError):
    """A mistake in what a user gave: a path, a size, a name, a file's content.

    Its message is one line that says what was wrong and what to do. The command line prints that
    line and exits with code 2; a library caller can treat it as the `ValueError` it is.
    """
