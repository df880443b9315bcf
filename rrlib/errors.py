"""The one exception that a user's own input can cause."""


class InputError(ValueError):
    """A parameter or file that cannot be used.

    The message is one sentence that names the parameter or file, the value, and what is allowed.
    In a notebook only that sentence is shown, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]
