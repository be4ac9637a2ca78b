"""What crosses a process boundary, and the Python client. Imports nothing else of Landbridge.

    with landbridge.connect("gateway.fra.example.org:7443", credentials, options) as gateway:
        migration = gateway.migrate("web-01", "ams")
        for migration in gateway.watch(migration.id):
            print(migration.state, migration.progress.memory_remaining)

    client     connect() and Client, which stand here too: what the command line can do, for Python
    errors     the error tree; every error of the client is one of it
    v1         the contract: messages and services, generated from v1/*.proto
    channel    a stream between agents: its life; sending (with estimator) and receiving are its two directions
    frame      how those streams stand on the wire

`certs.tls` makes the credentials and options from an identity directory: import `certs` before anything that
loads grpc. For that reason this module loads grpc, through `client`, at the first use of `connect`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from landbridge.client import Client, connect

__all__ = ["Client", "connect"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from landbridge import client  # noqa: PLC0415 - loads grpc, see above

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
