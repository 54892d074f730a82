"""Secrets do not survive the way into a log."""

import logging
import sys

import pytest

from m1.infra.redact import RedactingFilter, redact

ACCESS_KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"key {ACCESS_KEY} used", ACCESS_KEY),
        ("s3://user:hunter2pass@host/x", "hunter2pass"),
        ("postgres://:hunter2pass@host", "hunter2pass"),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("https://h/k?X-Amz-Signature=deadbeef99&x=1", "deadbeef99"),
        ("aws_secret_access_key = abcdefghijkl", "abcdefghijkl"),
        ('{"api_key": "abcdefghijkl"}', "abcdefghijkl"),
        ("token hf_abcdefghijklmnopqrst", "hf_abcdefghijklmnopqrst"),
        ("PASSWORD=correcthorse", "correcthorse"),
    ],
)
def test_what_looks_like_a_secret_is_gone(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


def test_values_of_secret_variables_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plainlookingvalue")
    assert redact("it says plainlookingvalue here") == "it says *** here"


@pytest.mark.parametrize(
    "text",
    ["tokens = 1000", "tokens_per_second: 12345.6", "loss 2.5", "s3://bucket/prefix", "a@b.c"],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_the_filter_covers_arguments_and_tracebacks() -> None:
    try:
        int("password=correcthorse")
    except ValueError:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "use %s", (ACCESS_KEY,), sys.exc_info()
        )
    assert RedactingFilter().filter(record)
    shown = logging.Formatter().format(record)
    assert ACCESS_KEY not in shown
    assert "correcthorse" not in shown
    assert "ValueError" in shown
