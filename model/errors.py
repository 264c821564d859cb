"""Errors of the model, in the form of all layers: what is wrong, and what to do about it."""


class ModelError(ValueError):
    """A model, batch or configuration that cannot work.

    It has the form of `storage.errors.ExpectedError`, which `model` may not import.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message, self.remedy = message, remedy

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.remedy}" if self.remedy else self.message

    @property
    def sentence(self) -> str:
        """Message and remedy in one line, for a page or a response."""
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


class NotFiniteError(ModelError):
    """A loss or gradient is NaN or infinite; raised before it reaches any weight.

    Attributes:
        step: Optimizer step, from 0.
        losses: Mean loss of each forward pass of this process in that step.
        gradient_norm: Norm of the step's gradient.
        example_ids: The examples of the passes whose loss is not finite; those of the whole step
            where only the gradient is not.
        own: Whether a loss of this process is not finite; otherwise another process's loss may
            have made the shared gradient so.
    """

    def __init__(
        self,
        step: int,
        losses: list[float],
        gradient_norm: float,
        example_ids: list[int],
        *,
        own: bool,
    ) -> None:
        self.step, self.losses, self.gradient_norm = step, losses, gradient_norm
        self.example_ids, self.own = example_ids, own
        shown = ", ".join(map(str, example_ids[:8])) + (", …" if len(example_ids) > 8 else "")
        super().__init__(
            f"the loss or its gradient is not finite at step {step} "
            f"(losses {losses}, gradient norm {gradient_norm}); examples {shown}"
        )
