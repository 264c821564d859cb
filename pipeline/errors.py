"""Errors a user can act on: one line says what is wrong, and one how to fix it."""


class PipelineError(Exception):
    """A run cannot continue, for a reason that its user can fix.

    Args:
        message: What is wrong, naming the file, record or field.
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        self.remedy = remedy
        super().__init__(f"{message}\n  → {remedy}" if remedy else message)


class UnreachableError(PipelineError):
    """A remote did not answer, or said that it is busy: the same request may succeed later."""


class RecipeError(PipelineError):
    """A recipe or an override is not valid; raised before any work starts."""
