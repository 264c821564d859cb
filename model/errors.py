"""The error of this room: one clear line that says what is wrong and what to do."""


class ModelError(ValueError):
    """A model, batch or configuration that cannot work; the message names the remedy."""
