"""gRPC channels whose certificate changes under them: for clients that run for longer than a certificate lives.

A channel of gRPC keeps the credentials that it was made with. So there is a new one once the identity has changed, for every call
that begins from then on; the old one is closed when the last of its calls has ended, be it hours later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from grpc import aio

from certs import tls
from certs.identity import Identity, Role
from certs.living import LivingIdentity
from landbridge.errors import NotAuthenticated


class LivingChannel:
    """Where a stub wants a channel. Owned by one event loop."""

    def __init__(
        self,
        target: str,
        local: LivingIdentity,
        role: Role,
        site: str,
        name: str | None,
        options: Sequence[tuple[str, str | int]],
    ) -> None:
        """`target` as gRPC takes it; its certificate must be for this role of this site, and for this name unless it is None."""
        self._target = target
        self._local = local
        self._site = site
        domain = local.identity.trust_domain
        self._expected = None if name is None else Identity(domain, site, role, name)
        self._options = [*tls.grpc_channel_options(role, site, domain, name), *options]
        # The newest last.
        self._wires: list[_Wire] = []
        self._closing: set[asyncio.Task[None]] = set()

    def for_stub(self) -> aio.Channel:
        """This, as the type that stubs ask for: they use no more of it than is here."""
        return cast("aio.Channel", self)

    def unary_unary(self, *method: Any, **options: Any) -> Callable[..., Any]:
        """As of a channel."""
        return lambda *request, **call: self._call("unary_unary", method, options, request, call)

    def unary_stream(self, *method: Any, **options: Any) -> Callable[..., Any]:
        """As of a channel."""
        return lambda *request, **call: self._call("unary_stream", method, options, request, call)

    def _call(self, kind: str, method: Any, options: Any, request: Any, call: Any) -> Any:
        if self._expected is not None and (refusal := self._local.refusal(self._expected)):
            raise NotAuthenticated(refusal)
        wire = self._wire()
        begun = getattr(wire.channel, kind)(*method, **options)(*request, **call)
        wire.calls += 1
        begun.add_done_callback(lambda _: self._ended(wire))
        return begun

    def _wire(self) -> _Wire:
        made_with = self._local.stored
        if not self._wires or self._wires[-1].made_with is not made_with:
            credentials = tls.grpc_channel_credentials(made_with, self._site)
            channel = aio.secure_channel(self._target, credentials, options=self._options)
            self._wires.append(_Wire(channel, made_with))
            for old in self._wires[:-1]:
                self._close_if_idle(old)
        return self._wires[-1]

    def _ended(self, wire: _Wire) -> None:
        wire.calls -= 1
        if self._wires and wire is not self._wires[-1]:
            self._close_if_idle(wire)

    def _close_if_idle(self, wire: _Wire) -> None:
        if not wire.calls and wire in self._wires:
            self._wires.remove(wire)
            closing = asyncio.get_running_loop().create_task(wire.channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End every call and every connection."""
        await asyncio.gather(*self._closing)
        wires, self._wires = self._wires, []
        for wire in wires:
            await wire.channel.close()


class _Wire:
    """One channel of gRPC."""

    def __init__(self, channel: aio.Channel, made_with: object) -> None:
        self.channel = channel
        self.made_with = made_with
        self.calls = 0
