"""The error tree, and its way through gRPC."""

import pytest

from landbridge import errors
from landbridge.errors import BY_CODE, LandbridgeError, from_status, to_status

# grpc.StatusCode, written out: the error tree must be usable without grpc. test_tls.py compares the two.
STATUSES = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
}


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_every_error_comes_back_as_itself(kind: type[LandbridgeError]) -> None:
    error = kind("VM web1 has no disk: add one.", details={"vm": "web1", "why": "größe ✓"})
    name, message, trailing = to_status(error)
    back = from_status(name, message, trailing)
    assert type(back) is kind
    assert (back.message, back.details, str(back)) == (error.message, error.details, error.message)


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_every_error_is_drawn_and_named_in_grpc(kind: type[LandbridgeError]) -> None:
    assert kind.grpc_status in STATUSES
    drawn = (errors.__doc__ or "").splitlines()
    line = next(line for line in drawn if kind.__name__ in line.split() or line.endswith(kind.__name__))
    if "exit" in line:
        assert line.split()[-3:] == ["exit", str(kind.exit_code), kind.grpc_status]


def test_codes_are_unique() -> None:
    assert len(BY_CODE) == len(list(errors._tree(LandbridgeError)))


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_a_status_without_a_code_still_has_a_class(status: str) -> None:
    error = from_status(status, None)
    assert status in error.message
    assert isinstance(error, LandbridgeError)


def test_an_unknown_code_falls_back_to_the_status_and_is_kept() -> None:
    error = from_status("NOT_FOUND", "gone", [("landbridge-code", "from-the-future"), ("other", b"\xff")])
    assert type(error) is errors.NotFound
    assert error.details == {"peer_code": "from-the-future"}


def test_undecodable_details_do_not_raise() -> None:
    error = from_status("UNKNOWN", "x", {"landbridge-detail-vm-bin": b"\xff\xfe"})
    assert type(error) is errors.InternalError
    assert error.details == {"vm": "��"}


def test_what_is_sent_stays_below_the_limit_of_grpc() -> None:
    error = errors.HypervisorError("é" * 9000, details={f"k{n}": "ü" * 9000 for n in range(50)})
    _, message, trailing = to_status(error)
    assert len(message.encode()) <= errors.MESSAGE_BYTES
    sent = sum(len(key) + len(value) * 4 // 3 for key, value in trailing.items()) + 3 * len(message.encode())
    assert sent < 8192 - 256
