"""Errors of runs and recipes."""

from storage.errors import ExpectedError


class PipelineError(ExpectedError):
    """A run cannot continue, for a reason that its user can fix."""


class UnreachableError(PipelineError):
    """A remote did not answer, or said that it is busy: the same request may succeed later."""


class RecipeError(PipelineError):
    """A recipe or an override is not valid; raised before any work starts."""
