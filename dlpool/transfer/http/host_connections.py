"""Adapt the number of connections to each host, over all downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from dlpool.dataclass import dataclass
from dlpool.transfer.aimd import Aimd, ControlParameters

# first level, in connections: the default of a fixed number, so that an adaptive
# download does not begin slower
START = 4
CONTROL_PARAMETERS = ControlParameters(
    settle_s=0.25, measure_s=0.75, pause_s=5.0, max_pause_s=60.0
)
MEMORY_S = 600.0  # seconds for which an unused host is remembered


def distribute(level: int, most: Sequence[int]) -> list[int]:
    """Distribute ``level`` connections evenly over downloads.

    ``most``: how many connections each download can use. Each download gets at least
    one.
    """
    shares = [1] * len(most)
    spare = level - len(most)
    while spare > 0 and (
        expandable := [
            index for index, share in enumerate(shares) if share < most[index]
        ]
    ):
        for index in expandable[:spare]:
            shares[index] += 1
        spare -= len(expandable)
    return shares


@dataclass(eq=False)
class ShareMember:
    """A download that shares the connections to a host with other downloads.

    ``most``: connections that it can use. ``share``: connections assigned to it.
    ``busy``: connections that are working. ``received``: its bytes so far.
    """

    most: int
    share: int = 1
    received: int = 0
    busy: int = 0


class HostState:
    """The downloads from one host, and their level.

    The level is the number of connections of all these downloads together. Used under
    the lock of HostConnections.
    """

    def __init__(self, most: int) -> None:
        self.control = Aimd(1, most, START, CONTROL_PARAMETERS)
        self.members: list[ShareMember] = []
        self.received = 0
        self.left_at = 0.0
        self._distributed_level = 0

    def distribute(self) -> None:
        """Give each download its share of the level."""
        self._distributed_level = self.control.level
        for member, share in zip(
            self.members,
            distribute(self._distributed_level, [one.most for one in self.members]),
            strict=True,
        ):
            member.share = share

    def sample(self, now: float) -> None:
        """Record a sample, and distribute again if the level has changed."""
        self.control.sample(
            now, self.received, sum(member.busy for member in self.members)
        )
        if self.control.level != self._distributed_level:
            self.distribute()


class ConnectionShare:
    """One download's share of the connections to its host. Thread-safe."""

    def __init__(self, shares: HostConnections, name: str, member: ShareMember) -> None:
        self.host = name
        self._shares = shares
        self._member = member

    def __repr__(self) -> str:
        return f"<Share {self._member.share} of {self.host}>"

    @property
    def wanted(self) -> int:
        """Return the number of connections that this download should have."""
        return self._member.share

    def report(self, received: int, busy: int) -> str:
        """Record the total of received bytes and the number of busy connections.

        Returns the reason for the present level.
        """
        return self._shares.report(self, self._member, received, busy)

    def leave(self) -> None:
        """Give the share back: the download needs no more connections."""
        self._shares.leave(self, self._member)


class HostConnections:
    """The number of connections to each host, for all downloads of a process.

    Thread-safe; the lock guards the table and its contents.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: dict[str, HostState] = {}
        # by host: the connections to one file that it accepts, and when that was seen
        self._admitted: dict[str, tuple[int, float]] = {}

    def record_limit(self, host: str, connections: int) -> None:
        """Record that ``host`` refused more than ``connections`` connections.

        The record expires after ten minutes.
        """
        with self._lock:
            now = self._clock()
            self._admitted = {
                name: one
                for name, one in self._admitted.items()
                if now - one[1] < MEMORY_S
            }
            self._admitted[host] = (
                min(connections, self._admitted.get(host, (connections, now))[0]),
                now,
            )

    def raise_limit(self, host: str, connections: int) -> None:
        """Raise the limit recorded for ``host`` to ``connections``, if it is lower."""
        with self._lock:
            known, at = self._admitted.get(host, (connections, 0.0))
            if known < connections:
                self._admitted[host] = connections, at

    def max_connections(self, host: str, wanted: int) -> int:
        """Return how many of ``wanted`` connections ``host`` is known to accept."""
        known = self._admitted.get(host)
        if known is None or self._clock() - known[1] >= MEMORY_S:
            return wanted
        return min(wanted, known[0])

    def level(self, host: str, most: int) -> int:
        """Return the present level of ``host``, at most ``most``."""
        with self._lock:
            known = self._hosts.get(host)
            return min(most, known.control.level if known else START)

    def join(self, host: str, most: int, *, limit: int) -> ConnectionShare:
        """Add a download that can use ``most`` connections, and return its share.

        ``limit``: the highest level that the host may ever have, for all its downloads
        together. ``limit`` is ignored if the host is known already.
        """
        with self._lock:
            now = self._clock()
            self._forget(now)
            known = self._hosts.setdefault(host, HostState(limit))
            if not known.members:
                known.control.restart()
            member = ShareMember(most)
            known.members.append(member)
            known.distribute()
            return ConnectionShare(self, host, member)

    def refused(self, host: str, reason: str) -> None:
        """Reduce the level of ``host`` after a failure that may show a limit.

        ``reason``: the label of the failure, such as a status 429 or 503 or a reset
        connection.
        """
        with self._lock:
            if (known := self._hosts.get(host)) is not None and known.members:
                known.control.record_refusal(self._clock(), reason)

    def answered(self, host: str, seconds: float) -> None:
        """Record that ``host`` took ``seconds`` seconds to respond.

        Several late responses in a row reduce the level of the host.
        """
        with self._lock:
            if (known := self._hosts.get(host)) is not None and known.members:
                known.control.record_latency(self._clock(), seconds)

    def report(
        self, share: ConnectionShare, member: ShareMember, received: int, busy: int
    ) -> str:
        """Implement ``ConnectionShare.report``."""
        with self._lock:
            known = self._hosts[share.host]
            known.received += received - member.received
            member.received, member.busy = received, busy
            known.sample(self._clock())
            return known.control.reason

    def leave(self, share: ConnectionShare, member: ShareMember) -> None:
        """Implement ``ConnectionShare.leave``."""
        with self._lock:
            known = self._hosts[share.host]
            known.members.remove(member)
            known.left_at = self._clock()
            known.distribute()

    def _forget(self, now: float) -> None:
        """Remove hosts that no download has used for ten minutes."""
        self._hosts = {
            name: host
            for name, host in self._hosts.items()
            if host.members or now - host.left_at < MEMORY_S
        }
