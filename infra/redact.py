"""Secrets out of text that is about to be shown or stored. A last net, not a permission."""

import logging
import os
import re

_PATTERNS = (
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "***"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s:@]*:[^/\s@]+@"), r"\1***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), r"\1 ***"),
    (re.compile(r"(?i)(x-amz-(?:signature|security-token|credential)=)[^&\s]+"), r"\1***"),
    (re.compile(r"\b(?:hf_|ghp_|sk-|pnu_)[A-Za-z0-9_-]{16,}"), "***"),
    (  # "tokens" are what a model reads, "token" is what opens a door
        re.compile(r"(?i)([\w-]*(?:secret|token(?!s|iz)|password|api_?key)[\w-]*['\"]?\s*[=:]\s*['\"]?)[^\s'\",&]{6,}"),
        r"\1***",
    ),
)  # fmt: skip
_SECRET_NAME = re.compile(
    r"(?i)secret|token(?!s|iz)|password|passwd|credential|api_?key|access_key"
)
_SHORTEST_SECRET = 6


def redact(text: str) -> str:
    """Replace what looks like a secret, and the values of secret environment variables."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFilter(logging.Filter):
    """Redacts the finished message, traceback included; attach it to handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place and keep it."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True
