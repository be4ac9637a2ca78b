"""One host's libvirtd, and how we stay connected to it.

libvirt's event loop is one daemon thread per process. It only takes notes: events and lost connections go
into a queue, which a second thread (one per `Connection`, started with the first subscription) delivers to
subscribers. So a subscriber may call the driver, and a slow one does not stall keepalives. When libvirtd
goes away, that second thread dials until it is back and registers for events again; calls dial for
themselves.

This module is given libvirt's module and does not import it: `libvirt_driver` is the only door.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agent.hypervisor.base import VmChange, VmEvent
from landbridge.errors import HypervisorError, NotFound

# libvirtd answers pings within 5 s x (5 + 1), its own patience with us, or the connection counts as lost.
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 5
# Between attempts to reach a libvirtd that is gone; a restart takes one to two seconds.
REDIAL_S = 0.5

_LOST = object()
_CLOSE = object()

_loop_lock = threading.Lock()
_loop: threading.Thread | None = None  # guarded by _loop_lock


def start_event_loop(api: Any) -> None:
    """Start libvirt's event loop, once per process, before its first connection; errors are not printed."""
    global _loop  # noqa: PLW0603 - libvirt's loop is one per process
    with _loop_lock:
        if _loop is not None:
            return
        api.registerErrorHandler(lambda _context, _error: None, None)
        api.virEventRegisterDefaultImpl()
        # Without a timer the loop could sleep past the first connection.
        api.virEventAddTimeout(1000, lambda _timer, _opaque: None, None)
        _loop = threading.Thread(target=_run_event_loop, args=(api,), name="libvirt-events", daemon=True)
        _loop.start()


def _run_event_loop(api: Any) -> None:
    while True:
        api.virEventRunDefaultImpl()


class Connection:
    """A connection to one libvirtd, made anew whenever it broke."""

    def __init__(self, api: Any, uri: str) -> None:
        self._api = api
        self._uri = uri
        self._lock = threading.Lock()
        self._link: Any = None  # virConnect; guarded by _lock
        self._closed = False  # guarded by _lock
        self._subscribers: dict[int, Callable[[VmEvent], object]] = {}  # guarded by _lock
        self._numbers = itertools.count()
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._courier: threading.Thread | None = None  # guarded by _lock
        start_event_loop(api)

    @contextmanager
    def use(self, what: str) -> Iterator[Any]:
        """The live virConnect, for one action: "cannot {what}: ..." is how an error of libvirt's begins."""
        link = self._live(what)
        with self.explained(what):
            yield link

    @contextmanager
    def alone(self, what: str) -> Iterator[Any]:
        """A virConnect of its own for a long call: libvirtd serves only five calls at once per connection."""
        link = self._dial(what)
        try:
            with self.explained(what):
                yield link
        finally:
            self._hang_up(link)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn libvirt's errors into ours."""
        try:
            yield
        except self._api.libvirtError as error:
            text = (error.get_error_message() or str(error)).strip().rstrip(".").replace("\n", " ")
            if error.get_error_code() == self._api.VIR_ERR_NO_DOMAIN:
                raise NotFound(f"No such VM on this host: {text}.") from error
            raise HypervisorError(f"libvirt cannot {what}: {text}.") from error

    def subscribe(self, callback: Callable[[VmEvent], object]) -> Callable[[], None]:
        """Deliver every VmEvent to `callback`, from now on and across restarts of libvirtd."""
        with self._lock:
            number = next(self._numbers)
            self._subscribers[number] = callback
            if self._courier is None:
                self._courier = threading.Thread(target=self._deliver, name="libvirt-courier", daemon=True)
                self._courier.start()
        try:
            self._live("watch the VMs")
        except HypervisorError:
            self._news.put(_LOST)  # not there yet: the courier goes on dialling

        def stop() -> None:
            with self._lock:
                self._subscribers.pop(number, None)

        return stop

    def close(self) -> None:
        """Hang up, and end the courier."""
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
            courier, self._courier = self._courier, None
        self._news.put(_CLOSE)
        if courier is not None and courier is not threading.current_thread():
            courier.join()
        if link is not None:
            self._hang_up(link)

    def _live(self, what: str) -> Any:
        with self._lock:
            if self._closed:
                raise HypervisorError(f"Cannot {what}: this agent has let go of libvirt.")
            if self._link is not None and self._link.isAlive() == 1:
                return self._link
            stale, self._link = self._link, None
            if stale is not None:
                self._hang_up(stale)
            link = self._dial(what)
            with self.explained(what):
                link.registerCloseCallback(self._on_close, None)
                lifecycle = self._api.VIR_DOMAIN_EVENT_ID_LIFECYCLE
                link.domainEventRegisterAny(None, lifecycle, self._on_lifecycle, None)
            self._link = link
            return link

    def _dial(self, what: str) -> Any:
        try:
            link = self._api.open(self._uri)
            link.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except self._api.libvirtError as error:
            text = (error.get_error_message() or str(error)).strip().rstrip(".")
            raise HypervisorError(f"Cannot {what}, because libvirtd does not answer: {text}.") from error
        return link

    def _hang_up(self, link: Any) -> None:
        try:
            link.close()
        except self._api.libvirtError:
            return  # it was lost already

    # On libvirt's thread: take notes, call nothing.

    def _on_close(self, _link: Any, _reason: int, _opaque: Any) -> None:
        self._news.put(_LOST)

    def _on_lifecycle(self, _link: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        change = self._changes().get(event)
        if change is not None:
            words = self._detail(event, detail)
            self._news.put(VmEvent(domain.UUIDString(), domain.name(), change, time.time(), words))

    def _changes(self) -> dict[int, VmChange]:
        api = self._api
        return {
            api.VIR_DOMAIN_EVENT_STARTED: VmChange.STARTED,
            api.VIR_DOMAIN_EVENT_SUSPENDED: VmChange.SUSPENDED,
            api.VIR_DOMAIN_EVENT_PMSUSPENDED: VmChange.SUSPENDED,
            api.VIR_DOMAIN_EVENT_RESUMED: VmChange.RESUMED,
            api.VIR_DOMAIN_EVENT_STOPPED: VmChange.STOPPED,
            api.VIR_DOMAIN_EVENT_CRASHED: VmChange.STOPPED,
        }

    def _detail(self, event: int, detail: int) -> str:
        """libvirt's name of the detail: VIR_DOMAIN_EVENT_STOPPED_MIGRATED is "migrated"."""
        for kind in ("STARTED", "SUSPENDED", "RESUMED", "STOPPED", "CRASHED"):
            if event == getattr(self._api, f"VIR_DOMAIN_EVENT_{kind}"):
                prefix = f"VIR_DOMAIN_EVENT_{kind}_"
                for name, value in vars(self._api).items():
                    if name.startswith(prefix) and value == detail:
                        return str(name).removeprefix(prefix).lower().replace("_", " ")
        return ""

    # On the courier's thread.

    def _deliver(self) -> None:
        lost = False
        while True:
            try:
                item = self._news.get(timeout=REDIAL_S if lost else None)
            except queue.Empty:
                item = _LOST
            if item is _CLOSE:
                return
            if item is _LOST:
                lost = not self._is_back()
                continue
            with self._lock:
                callbacks = list(self._subscribers.values())
            for callback in callbacks:
                callback(item)

    def _is_back(self) -> bool:
        try:
            self._live("watch the VMs")
        except HypervisorError:
            return False
        return True
