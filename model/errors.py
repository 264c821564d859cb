"""Errors of the model: one clear line that says what is wrong and what to do."""


class ModelError(ValueError):
    """A model, batch or configuration that cannot work; the message names the remedy."""


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
