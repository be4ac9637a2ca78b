"""The one error tree of Landbridge, split by who has to act.

    LandbridgeError
    ├── OperatorError            the request, the configuration or the caller
    │   ├── UsageError           exit 2   INVALID_ARGUMENT
    │   ├── ConfigError          exit 2   FAILED_PRECONDITION
    │   ├── NotFound             exit 3   NOT_FOUND
    │   ├── Conflict             exit 4   ABORTED
    │   │   ├── AlreadyExists    exit 4   ALREADY_EXISTS
    │   │   └── TakenOver        exit 4   ABORTED
    │   ├── PreflightFailed      exit 5   FAILED_PRECONDITION
    │   ├── NotAuthenticated     exit 6   UNAUTHENTICATED
    │   │   └── IdentityError    exit 6   UNAUTHENTICATED
    │   ├── PermissionDenied     exit 6   PERMISSION_DENIED
    │   │   └── PolicyRefused    exit 6   PERMISSION_DENIED
    │   └── ApprovalNeeded       exit 12  FAILED_PRECONDITION
    ├── PeerError                the other site
    │   ├── Unreachable          exit 7   UNAVAILABLE
    │   ├── ProtocolError        exit 8   DATA_LOSS
    │   │   └── AlteredError     exit 8   DATA_LOSS
    │   └── OutOfStep            exit 8   DATA_LOSS
    ├── HostError                an agent or its hypervisor
    │   ├── HostUnreachable      exit 7   UNAVAILABLE
    │   └── HypervisorError      exit 9   UNKNOWN
    ├── MigrationFailed          exit 10  ABORTED
    ├── MigrationCancelled       exit 11  CANCELLED
    ├── NotRecorded              exit 13  UNAVAILABLE
    ├── EvidenceFailed           exit 14  DATA_LOSS
    └── InternalError            exit 70  INTERNAL

A message is one sentence: what is wrong, where, and what to do next. The code is stable and is what programs
test; exit codes and codes are never reused. Raise the leaves; catch the branches.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple, Self

# Metadata keys of a failed call. A key that ends in "-bin" carries bytes (gRPC over HTTP/2, Custom-Metadata).
CODE_KEY = "landbridge-code"
DETAIL_PREFIX = "landbridge-detail-"
DETAIL_SUFFIX = "-bin"

# gRPC refuses more than 8 KiB of metadata by default (GRPC_ARG_MAX_METADATA_SIZE). The message counts too,
# with up to three bytes for one (percent-encoding). These bounds stay below: 3 * 1024 + 8 * 384 * 4/3.
MESSAGE_BYTES = 1024
DETAIL_COUNT = 8
DETAIL_BYTES = 384


class LandbridgeError(Exception):
    """Base of every error that leaves a Landbridge interface."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, details: Mapping[str, str] | None = None) -> None:
        """`details` has keys of [a-z0-9_] and is for programs; `message` must make sense without it."""
        super().__init__(message)
        self.message = message
        self.details: dict[str, str] = dict(details or {})


class OperatorError(LandbridgeError):
    """The request, the configuration or the caller must change."""

    code = "operator-error"
    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class UsageError(OperatorError):
    """The request makes no sense."""

    code = "usage"
    grpc_status = "INVALID_ARGUMENT"


class ConfigError(OperatorError):
    """A file or setting on this machine is missing or wrong."""

    code = "config"


class NotFound(OperatorError):  # noqa: N818 - the noun says it; so for all names below without "Error"
    """What the request names does not exist."""

    code = "not-found"
    exit_code = 3
    grpc_status = "NOT_FOUND"


class Conflict(OperatorError):  # noqa: N818 - see NotFound
    """The request does not fit the present state."""

    code = "conflict"
    exit_code = 4
    grpc_status = "ABORTED"


class AlreadyExists(Conflict):
    """What the request would create is there."""

    code = "already-exists"
    grpc_status = "ALREADY_EXISTS"


class TakenOver(Conflict):
    """Another gateway of the site coordinates the migration."""

    code = "taken-over"


class PreflightFailed(OperatorError):  # noqa: N818 - see NotFound
    """The migration would not work; nothing has been changed."""

    code = "preflight-failed"
    exit_code = 5


class NotAuthenticated(OperatorError):  # noqa: N818 - see NotFound
    """The other side did not prove who it is."""

    code = "not-authenticated"
    exit_code = 6
    grpc_status = "UNAUTHENTICATED"


class IdentityError(NotAuthenticated):
    """A name, a SPIFFE ID or a certificate breaks the rules of `certs.identity`."""

    code = "bad-identity"


class PermissionDenied(OperatorError):  # noqa: N818 - see NotFound
    """The caller is known and may not do this."""

    code = "permission-denied"
    exit_code = 6
    grpc_status = "PERMISSION_DENIED"


class PolicyRefused(PermissionDenied):
    """A rule of a site's policy, or that no rule permits it; `details` has the rule and the site."""

    code = "policy-refused"


class ApprovalNeeded(OperatorError):  # noqa: N818 - see NotFound
    """Others must approve it first; `details` has the request that waits for them."""

    code = "approval-needed"
    exit_code = 12


class PeerError(LandbridgeError):
    """The other site, or the way to it."""

    code = "peer-error"
    exit_code = 8
    grpc_status = "UNAVAILABLE"


class Unreachable(PeerError):  # noqa: N818 - see NotFound
    """No answer; the same request may succeed later."""

    code = "unreachable"
    exit_code = 7


class ProtocolError(PeerError):
    """The other side said something that the protocol does not allow."""

    code = "protocol"
    grpc_status = "DATA_LOSS"


class AlteredError(ProtocolError):
    """Bytes of a stream are not what the far end has sent; somebody on the way has changed them."""

    code = "altered"

    @classmethod
    def between(cls, start: int, end: int) -> Self:
        """Somewhere from offset `start` to offset `end`."""
        message = f"bytes {start} to {end} arrived altered: somebody on the way has changed them"
        return cls(message, details={"start": str(start), "end": str(end)})

    @property
    def start(self) -> int:
        """The offset from which on they may differ."""
        return int(self.details.get("start", 0))

    @property
    def end(self) -> int:
        """The offset after the last that may differ."""
        return int(self.details.get("end", 0))


class OutOfStep(PeerError):  # noqa: N818 - see NotFound
    """What two gateways remember of each other's pages is not the same; they forget it and go on."""

    code = "out-of-step"
    grpc_status = "DATA_LOSS"


class HostError(LandbridgeError):
    """A host's agent or hypervisor."""

    code = "host-error"
    exit_code = 9
    grpc_status = "UNKNOWN"


class HostUnreachable(HostError):  # noqa: N818 - see NotFound
    """The agent does not answer; the same request may succeed later."""

    code = "host-unreachable"
    exit_code = 7
    grpc_status = "UNAVAILABLE"


class HypervisorError(HostError):
    """The hypervisor refused or failed."""

    code = "hypervisor"


class MigrationFailed(LandbridgeError):  # noqa: N818 - see NotFound
    """The migration ended without success; the message says where the VM is."""

    code = "migration-failed"
    exit_code = 10
    grpc_status = "ABORTED"


class MigrationCancelled(LandbridgeError):  # noqa: N818 - see NotFound
    """The migration ended because somebody asked for it."""

    code = "migration-cancelled"
    exit_code = 11
    grpc_status = "CANCELLED"


class NotRecorded(LandbridgeError):  # noqa: N818 - see NotFound
    """A log or a journal cannot be written, so what should have been recorded has not been done; it may succeed later."""

    code = "not-recorded"
    exit_code = 13
    grpc_status = "UNAVAILABLE"


class EvidenceFailed(LandbridgeError):  # noqa: N818 - see NotFound
    """A log, a proof or a receipt is not what was signed; the message says which check failed, where, and what it means."""

    code = "evidence-failed"
    exit_code = 14
    grpc_status = "DATA_LOSS"


class InternalError(LandbridgeError):
    """A defect of Landbridge: report it."""

    code = "internal"


def _tree(root: type[LandbridgeError]) -> Iterator[type[LandbridgeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


BY_CODE: dict[str, type[LandbridgeError]] = {kind.code: kind for kind in _tree(LandbridgeError)}

# What a status means that comes without a code: from gRPC itself, from a proxy, or from a newer peer.
_BY_STATUS: dict[str, type[LandbridgeError]] = {
    "CANCELLED": Unreachable,  # the server is shutting down
    "INVALID_ARGUMENT": UsageError,
    "OUT_OF_RANGE": UsageError,
    "DEADLINE_EXCEEDED": Unreachable,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Unreachable,
    "FAILED_PRECONDITION": Conflict,
    "ABORTED": Conflict,
    "UNIMPLEMENTED": ProtocolError,
    "UNAVAILABLE": Unreachable,
    "DATA_LOSS": ProtocolError,
    "UNAUTHENTICATED": NotAuthenticated,
}


class Status(NamedTuple):
    """An error as a gRPC call carries it."""

    name: str  # of the member of grpc.StatusCode
    message: str
    trailing: dict[str, str | bytes]


def to_status(error: LandbridgeError) -> Status:
    """What the server sends for an error; overlong messages and details are cut to what gRPC carries."""
    trailing: dict[str, str | bytes] = {CODE_KEY: error.code}
    for key, value in list(error.details.items())[:DETAIL_COUNT]:
        trailing[f"{DETAIL_PREFIX}{key}{DETAIL_SUFFIX}"] = _cut(value, DETAIL_BYTES).encode()
    return Status(error.grpc_status, _cut(error.message, MESSAGE_BYTES), trailing)


def from_status(
    status_name: str,
    message: str | None,
    trailing: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]] = (),
) -> LandbridgeError:
    """The error that a failed call stands for: by its code, else by its status, else InternalError.

    Never raises: what the other side sent is untrusted, and undecodable parts are replaced.
    """
    pairs = trailing.items() if isinstance(trailing, Mapping) else trailing
    details: dict[str, str] = {}
    kind: type[LandbridgeError] | None = None
    for key, value in pairs:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if key == CODE_KEY:
            kind = BY_CODE.get(text)
            if kind is None:
                details["peer_code"] = text
        elif key.startswith(DETAIL_PREFIX):
            details[key.removeprefix(DETAIL_PREFIX).removesuffix(DETAIL_SUFFIX)] = text
    if kind is None:
        kind = _BY_STATUS.get(status_name, InternalError)
    return kind(message or f"The other side answered {status_name} without an explanation.", details=details)


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"
