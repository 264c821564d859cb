"""A request to end is heard, even where Python cannot raise an exception."""

import subprocess
import sys

import pytest

from flows.interrupts import was_asked_to_end

LOSING = """
import os, signal, time
from flows.interrupts import end_on_request
end_on_request()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Busy:
    def __del__(self):
        {request}
try:
    busy = Busy()
    del busy
    print("lost")
    time.sleep(60)
except KeyboardInterrupt:
    print("heard")
"""
REQUESTS = {
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "ctrl-c": "os.kill(os.getpid(), signal.SIGINT)",
    "in a flow": "raise TerminationSignal(signal.SIGTERM)",
}


def said_by(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_that_comes_during_a_finalizer_is_repeated(request_: str) -> None:
    prefect = "from prefect.exceptions import TerminationSignal\n" * ("raise" in request_)
    done = said_by(prefect + LOSING.format(request=request_))
    assert done.stdout == "lost\nheard\n"
    assert done.stderr == ""


def test_other_errors_of_finalizers_are_printed_as_ever() -> None:
    code = LOSING.format(request="raise ValueError('a defect')").replace("time.sleep(60)", "")
    done = said_by(code)
    assert done.stdout == "lost\n"
    assert "ValueError: a defect" in done.stderr


@pytest.mark.parametrize(
    ("first", "asked"), [(KeyboardInterrupt(), True), (TimeoutError(), False), (None, False)]
)
def test_what_fails_while_ctrl_c_is_handled_is_still_ctrl_c(
    first: BaseException | None, *, asked: bool
) -> None:
    second = ValueError("Task run is not set")
    second.__context__ = first
    last = RuntimeError("the flow crashed")
    last.__cause__ = second
    assert was_asked_to_end(last) is asked
