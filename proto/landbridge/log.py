"""The log: one JSON object per line on standard error, with stable event names. The only structlog.configure.

An event is `noun.verb` in lower case; its facts are fields, never parts of the sentence. Keys whose names say that they
hold a secret are never written, nor are the values of the functions in a trace.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_WORDS = ("key_pem", "password", "secret", "token", "ticket")


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the values of fields that name a secret."""
    for name in event:
        if any(word in name for word in SECRET_WORDS):
            event[name] = "(redacted)"
    return event


PROCESSORS: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    redact,
    # Where a defect was, and not with what: among the values of a function may be a key or a secret.
    structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    structlog.processors.JSONRenderer(sort_keys=False, default=str),
)


def configure(program: str, *, verbose: bool = False) -> None:
    """Set up logging for this process; every line names the program."""
    structlog.configure(
        processors=list(PROCESSORS),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(program=program)
