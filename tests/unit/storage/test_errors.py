"""Errors of storage say one line, name the remedy, and keep secrets."""

import pickle
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StorageError, redact

secrets = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=4).map(
    lambda text: "S3" + quote(text, safe="") + "CRET"
)


@given(secrets, secrets, st.sampled_from(["http", "https", "s3", "gs", "abfs"]))
def test_redact_hides_secrets_and_keeps_the_place(user: str, key: str, scheme: str) -> None:
    told = redact(f"failed: {scheme}://{user}:{key}@host.org:80/a/b.zip?token={key}&v=1#x, again")
    assert user not in told
    assert key not in told
    assert f"{scheme}://***@host.org:80/a/b.zip?token=***" in told


@pytest.mark.parametrize(
    "url",
    ["/data/a@b?c.zip", "data/x", "s3://bucket/a@b/c.zip", "file:///tmp/a.zip", "http://[::1]:8/x"],
)
def test_redact_leaves_the_rest(url: str) -> None:
    assert redact(url) == url


@given(st.text())
def test_redact_takes_any_text(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_a_message_and_a_remedy_are_one_line_each_and_survive_pickling() -> None:
    error = StorageError("http://u:p@h/x is\nbroken.", "mend\nit")
    assert str(error) == "http://***@h/x is broken\n  → mend it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(StorageError("alone")) == "alone"


@pytest.mark.parametrize("text", ["a" * 300_000, "a://" * 75_000, "x://" + "?a=" * 100_000])
def test_redact_is_quick_on_any_text(text: str) -> None:
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 5  # CPU time, far below a quadratic search
