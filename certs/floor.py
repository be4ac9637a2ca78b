"""TLS 1.3 as the minimum inside gRPC, whose Python interface cannot say so.

gRPC accepts TLS 1.2 by default, and its only setting in reach is GRPC_SSL_CIPHER_SUITES: the suites of TLS
1.2, since those of 1.3 are fixed. All keys of Landbridge are ECDSA (`identity.identity_of` refuses others).
So the one suite that we allow needs an RSA key: every TLS 1.2 handshake ends with "no shared cipher", and TLS
1.3 is as before.

The C core reads its environment once, when the extension module is loaded, that is, at `import grpc`; a later
change has no effect. Therefore `hold` must run first; and where it came too late, `require` refuses to make
credentials. `tests/unit/test_tls.py` proves both with real handshakes.
"""

import os
import sys

from landbridge.errors import InternalError

VARIABLE = "GRPC_SSL_CIPHER_SUITES"
SUITES = "ECDHE-RSA-AES128-GCM-SHA256"

_CORE = "grpc._cython.cygrpc"

_held = False


def hold() -> None:
    """Set the floor for a gRPC that is not loaded yet, whatever the environment said before."""
    global _held  # noqa: PLW0603 - one process has one gRPC core, with one environment
    if _CORE not in sys.modules:
        os.environ[VARIABLE] = SUITES
        _held = True
    elif os.environ.get(VARIABLE) == SUITES:  # set by whoever started the process, or before the import
        _held = True


def require() -> None:
    """Raise InternalError where gRPC was loaded without the floor."""
    if not _held:
        raise InternalError(
            "grpc was imported before Landbridge and would accept TLS 1.2: import landbridge first, "
            f"or start the process with {VARIABLE}={SUITES}."
        )
