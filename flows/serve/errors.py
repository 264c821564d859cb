"""A request that cannot be answered, in the form that OpenAI's clients read."""

from typing import Any


class RequestError(Exception):
    """A refused request.

    Args:
        message: What is wrong, and what to do.
        status: HTTP status.
        param: The field at fault, if it is one.
        code: A short name of the fault.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
