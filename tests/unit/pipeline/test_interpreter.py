"""A process that imports much starts and ends without the collector, and ends in silence."""

import gc
import subprocess
import sys
from importlib import import_module

import pytest

from pipeline.interpreter import importing

ENDING = """
import atexit, sys
from pipeline.interpreter import leave_quickly
leave_quickly()
import duckdb
connection = duckdb.connect()
atexit.register(lambda: print("a library's last word", file=sys.stderr))
atexit.register(lambda: print("and of its result"))
sys.exit(3)
"""


def test_a_process_keeps_its_status_and_what_its_libraries_say_at_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 3
    assert done.stdout == "and of its result\n"
    assert done.stderr == "a library's last word\n"  # and nothing of leaks


@pytest.mark.parametrize(
    ("last", "told"),
    [("1 / 0", "ZeroDivisionError"), ("ctypes.string_at(0)", "Segmentation fault")],
    ids=["error", "crash"],
)
def test_what_goes_wrong_after_it_is_told(last: str, told: str) -> None:
    code = f"""
import atexit, ctypes
atexit.register(lambda: {last})
from pipeline.interpreter import leave_quickly
leave_quickly()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert told in done.stderr


def test_a_defect_still_shows_its_traceback() -> None:
    code = "from pipeline.interpreter import leave_quickly; leave_quickly(); 1 / 0"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("at_work", [True, False])
def test_the_collector_is_left_as_it_was_even_if_an_import_fails(*, at_work: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if at_work else gc.disable)()
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled() is at_work
        with pytest.raises(ModuleNotFoundError), importing():
            import_module("phivision_nowhere")
        assert gc.isenabled() is at_work
    finally:
        (gc.enable if was else gc.disable)()
