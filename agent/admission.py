"""Which channels a destination takes: those that the two ends agreed on, each once, and with a ticket of its own."""

from __future__ import annotations

from agent.channels import NAMES
from landbridge import ticket
from landbridge.errors import Conflict, PermissionDenied
from landbridge.v1.agent_pb2 import PrepareRequest
from landbridge.v1.channel_pb2 import ChannelKind, ChannelOpen

# Channels of one migration: more than a VM has disks.
MOST_CHANNELS = 512


class Admission:
    """Of one migration, in this run of the agent: none is opened after a restart."""

    def __init__(self, migration: str, host: str) -> None:
        """`host` for messages: "host east-1"."""
        self._migration = migration
        self._host = host
        # What its channels are opened with, and who they are said to be between.
        self._secret = b""
        self._ends = ("", "", "", "")
        # The tickets that have opened a channel, by kind and index.
        self._tickets: set[tuple[int, int]] = set()

    @property
    def source(self) -> str:
        """The site and the host that the VM comes from."""
        return "/".join(self._ends[:2])

    @property
    def has_begun(self) -> bool:
        """Whether a channel was opened."""
        return bool(self._tickets)

    def agree(self, request: PrepareRequest) -> None:
        """Take over what the coordinator says."""
        self._secret = request.channel_secret
        self._ends = (request.source_site, request.source_host, request.destination_site, request.destination_host)

    def admit(self, opening: ChannelOpen) -> str:
        """The kind of a new channel. Raises PermissionDenied for one without a good and unused ticket, or Conflict."""
        ends = (opening.source_site, opening.source_host, opening.destination_site, opening.destination_host)
        if ends != self._ends or not ticket.is_good(self._secret, opening):
            raise PermissionDenied(
                f"host {opening.source_host} of site {opening.source_site} opened a channel of migration {self._migration} "
                f"on {self._host} without a ticket for it"
            )
        if (opening.kind, opening.index) in self._tickets:
            # Also by the same channel, once it is forgotten: what it carried has arrived, and could be written over.
            raise PermissionDenied(f"a ticket of migration {self._migration} was used a second time on {self._host}")
        if opening.kind == ChannelKind.CHANNEL_KIND_RPC and opening.index:
            # The firewall follows one conversation: a second one could prepare a second time.
            raise PermissionDenied(f"migration {self._migration} has one rpc channel on {self._host}, not more")
        if len(self._tickets) >= MOST_CHANNELS:
            raise Conflict(f"migration {self._migration} has {MOST_CHANNELS} channels on {self._host} already")
        self._tickets.add((opening.kind, opening.index))
        return NAMES[opening.kind]
