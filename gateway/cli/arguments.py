"""What the verbs take: each argument is checked here, and a wrong one is answered with one sentence."""

import re
from dataclasses import dataclass
from fractions import Fraction

import click

from certs.identity import Identity, Role, parse
from landbridge.errors import IdentityError

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per line (docs/cli-json.md).")

_ID = re.compile("[0-9A-Za-z-]{4,64}")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[0-9A-Za-z._-]+):(?P<port>[0-9]{1,5})")
_REASON_CHARACTERS = 500  # as the gateway takes
_VM_CHARACTERS = 255  # libvirt's names are file names
_RATE = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,15})?) *(?P<unit>[A-Za-z]*?)(?P<second>/s)?")
# Bytes per second of one unit. "Mb" is missing: some mean bits by it, and some bytes.
_RATE_UNITS = {
    **{f"{prefix}bit": Fraction(1000**power, 8) for power, prefix in enumerate(("", "k", "M", "G", "T"))},
    **{f"{prefix}B": Fraction(1000**power) for power, prefix in enumerate(("", "k", "M", "G", "T"))},
    **{f"{prefix}iB": Fraction(1024**power) for power, prefix in enumerate(("K", "M", "G", "T"), 1)},
}
_MOST_BYTES_PER_S = 10**14
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,3})?) *(?P<unit>[a-z]+)")
# Milliseconds of one unit.
_DURATION_UNITS = {"ms": 1, "s": 1000, "min": 60_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True)
class Destination:
    """Where to: a site, and a host of it or "" for the gateway's choice."""

    site: str
    host: str

    def __str__(self) -> str:
        return f"{self.site}/{self.host}" if self.host else self.site


class _DestinationType(click.ParamType[Destination]):
    name = "SITE[/HOST]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Destination:
        if isinstance(value, Destination):
            return value
        text = str(value)
        site, slash, host = text.partition("/")
        try:
            Identity("any", site, Role.HOST, host if slash else "any")
        except IdentityError as error:
            self.fail(f"{error.message} Give SITE or SITE/HOST, such as ams or ams/host-b.", param, ctx)
        return Destination(site, host)


class _SiteType(click.ParamType[str]):
    name = "SITE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            Identity("any", text, Role.HOST, "any")
        except IdentityError as error:
            self.fail(f"{error.message} Give a site as `landbridge sites` shows it.", param, ctx)
        return text


class _VmType(click.ParamType[str]):
    name = "VM"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        parts = text.split("/")
        if not text.isprintable() or not all(parts) or len(parts) > 2 or len(text) > _VM_CHARACTERS:
            self.fail(
                f"{_shown(text)} names no VM: give its name, its UUID, or HOST/NAME, such as web-01 or host-a/web-01.",
                param,
                ctx,
            )
        return text


class _WhoType(click.ParamType[str]):
    name = "WHO"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        site, slash, name = text.rpartition("/")
        try:
            if text.startswith("spiffe:"):
                parse(text)
            else:
                Identity("any", site if slash else "any", Role.OPERATOR, name)
        except IdentityError as error:
            self.fail(f"{error.message} Give NAME, SITE/NAME or a SPIFFE ID, such as alice or ams/alice.", param, ctx)
        return text


class _IdType(click.ParamType[str]):
    name = "ID"

    def __init__(self, of: str, shown_by: str) -> None:
        self._of = of
        self._shown_by = shown_by

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not _ID.fullmatch(text):
            self.fail(
                f"{_shown(text)} is no {self._of}'s id: give its first four characters or more, as "
                f"`landbridge {self._shown_by}` shows them.",
                param,
                ctx,
            )
        return text


class _ReasonType(click.ParamType[str]):
    name = "REASON"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if not text or not text.isprintable() or len(text) > _REASON_CHARACTERS:
            self.fail(f"Say why, in one line of at most {_REASON_CHARACTERS} characters.", param, ctx)
        return text


class _RateType(click.ParamType[int]):
    """Bytes per second, 0 for no limit; written as a number and a unit, or as "0" or "none".

    50Mbit/s, 200 Mbit, 1.5Gbit/s      bits:  bit kbit Mbit Gbit Tbit, in powers of ten
    12.5MB/s, 800kB                    bytes: B kB MB GB TB, in powers of ten
    6MiB/s                             bytes: KiB MiB GiB TiB, in powers of two

    The "/s" and the space may be left out. A fraction of a byte is dropped.
    """

    name = "RATE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip()
        if text in {"0", "none"}:
            return 0
        match = _RATE.fullmatch(text)
        if not match or match["unit"] not in _RATE_UNITS:
            self.fail(
                f"{_shown(text)} is no rate: give a number with its unit, such as 50Mbit/s, 1Gbit/s or 12.5MB/s, "
                "or none for no limit.",
                param,
                ctx,
            )
        exact = Fraction(match["number"]) * _RATE_UNITS[match["unit"]]
        if 0 < exact < 1:
            self.fail(f"{_shown(text)} is less than a byte per second: give more, or none for no limit.", param, ctx)
        if exact > _MOST_BYTES_PER_S:
            self.fail(f"{_shown(text)} is more than any line carries: give less, or none for no limit.", param, ctx)
        return int(exact)


class _DurationType(click.ParamType[int]):
    """Milliseconds, at least 1; written as a number and a unit: ms, s, min (or m), h, d."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip()
        match = _DURATION.fullmatch(text)
        if not match or match["unit"] not in _DURATION_UNITS:
            self.fail(
                f"{_shown(text)} is no duration: give a number with its unit, such as 90s, 15min or 2h.", param, ctx
            )
        milliseconds = int(Fraction(match["number"]) * _DURATION_UNITS[match["unit"]])
        if milliseconds == 0:
            self.fail(f"{_shown(text)} is over at once: give more.", param, ctx)
        return milliseconds


class _AddressesType(click.ParamType[str]):
    name = "HOST:PORT[,...]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        addresses = [text.strip() for text in str(value).split(",")]
        for text in addresses:
            match = _ADDRESS.fullmatch(text)
            if not match or not 0 < int(match["port"]) < 65536:
                self.fail(
                    f"{_shown(text)} is no address: give HOST:PORT, such as gateway.example.org:7443 or "
                    "[2001:db8::1]:7443, or several with commas between them.",
                    param,
                    ctx,
                )
        return ",".join(addresses)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else f"{text[:80]}...")


DESTINATION = _DestinationType()
SITE = _SiteType()
ADDRESSES = _AddressesType()
WHO = _WhoType()
ID = _IdType("migration", "migrations")
REQUEST = _IdType("request", "requests")
REASON = _ReasonType()
RATE = _RateType()
DURATION = _DurationType()
vm = click.argument("vm", type=_VmType())
request_id = click.argument("request_id", metavar="ID", type=REQUEST)
migration_id = click.argument("migration_id", metavar="ID", type=ID)
