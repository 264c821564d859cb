"""Requests to end, SIGTERM and Ctrl-C, which must not be lost."""

import os
import signal
import sys
import threading

_SECONDS = 0.05  # before a lost request is repeated: the callback that lost it has ended by then


def end_on_request() -> None:
    """Treat SIGTERM like Ctrl-C in this process, so that the server of a run ends with it.

    Python raises the exception in whatever code it is executing. In a finalizer or a weak
    reference's callback, of which every import calls one, it is printed and dropped, and a run
    would go on for hours: a request that was dropped is repeated.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _repeat_request


def _repeat_request(dropped: "sys.UnraisableHookArgs") -> None:
    if not _is_request(dropped.exc_type):
        sys.__unraisablehook__(dropped)
        return
    # From a thread: sent from this function, it would be raised inside it.
    again = threading.Timer(_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    again.start()


def was_asked_to_end(error: BaseException) -> bool:
    """Return whether an error only followed a request to end.

    Prefect's engine fails while it handles one that arrives before its task run is made.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _is_request(type(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_request(kind: type[BaseException]) -> bool:
    # Not imported here, which takes a second: without Prefect there is none of its signals.
    prefect = sys.modules.get("prefect.exceptions")
    return issubclass(kind, (KeyboardInterrupt, *([prefect.TerminationSignal] if prefect else [])))
