"""Errors a person can act on: one line that names the thing, and one that names the remedy."""


class PipelineError(Exception):
    """A run cannot go on for a reason that its user can mend.

    Args:
        message: What is wrong, naming the file, record or field.
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        self.remedy = remedy
        super().__init__(f"{message}\n  → {remedy}" if remedy else message)


class UnreachableError(PipelineError):
    """A place did not answer, or said that it is busy: the same request may succeed later."""


class RecipeError(PipelineError):
    """A recipe or an override is not valid; raised before any work starts."""
