"""One thread that owns a model and writes all answers; for the chat page and for the server."""
