"""The connections to each host, where their number is found by trying: shared by all
downloads of a process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlpool.transfer.aimd import Aimd, ControlParameters

# connections: the default of a fixed number, so that trying is never slower for long
START = 4
TEMPO = ControlParameters(settle_s=0.25, measure_s=0.75, rest_s=5.0, most_rest_s=60.0)
MEMORY_S = 600.0  # for how long a host is remembered that nobody asks


def distribute(level: int, most: Sequence[int]) -> list[int]:
    """``level`` connections dealt over downloads that can use so many each: evenly, and
    at least one to each."""
    shares = [1] * len(most)
    spare = level - len(most)
    while spare > 0 and (
        hungry := [index for index, share in enumerate(shares) if share < most[index]]
    ):
        for index in hungry[:spare]:
            shares[index] += 1
        spare -= len(hungry)
    return shares


@dataclass(eq=False)
class ShareMember:
    """A download at a host: what it can use and has, what it has received and how many
    of its connections work."""

    most: int
    share: int = 1
    received: int = 0
    busy: int = 0


class HostState:
    """What is known of one host. Used under the lock of HostConnections."""

    def __init__(self, most: int) -> None:
        self.control = Aimd(1, most, START, TEMPO)
        self.members: list[ShareMember] = []
        self.received = 0
        self.left_at = 0.0
        self._dealt = 0

    def distribute(self) -> None:
        """Give each download its share of the level."""
        self._dealt = self.control.level
        for member, share in zip(
            self.members,
            distribute(self._dealt, [one.most for one in self.members]),
            strict=True,
        ):
            member.share = share

    def sample(self, now: float) -> None:
        """Take a sample, and deal anew where the level has changed."""
        self.control.sample(
            now, self.received, sum(member.busy for member in self.members)
        )
        if self.control.level != self._dealt:
            self.distribute()


class ConnectionShare:
    """One download's part of the connections to its host. Thread-safe."""

    def __init__(self, shares: HostConnections, name: str, member: ShareMember) -> None:
        self.host = name
        self._shares = shares
        self._member = member

    def __repr__(self) -> str:
        return f"<Share {self._member.share} of {self.host}>"

    @property
    def wanted(self) -> int:
        """How many connections this download should have now."""
        return self._member.share

    def report(self, received: int, busy: int) -> str:
        """Say what it has received in all (bytes), and how many connections work.
        Returns why it has its share."""
        return self._shares.report(self, self._member, received, busy)

    def leave(self) -> None:
        """It needs no more connections."""
        self._shares.leave(self, self._member)


class HostConnections:
    """All hosts of a process. Thread-safe; the lock guards the table and everything in
    it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: dict[str, HostState] = {}
        self._admitted: dict[
            str, tuple[int, float]
        ] = {}  # connections to one file, and the time of that observation

    def record_limit(self, host: str, connections: int) -> None:
        """Remember for ``MEMORY_S`` that ``host`` refused more than this number of
        connections."""
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
        """Raise the limit recorded by ``admits``: ``host`` sends a file over this
        number of connections."""
        with self._lock:
            known, at = self._admitted.get(host, (connections, 0.0))
            if known < connections:
                self._admitted[host] = connections, at

    def max_connections(self, host: str, wanted: int) -> int:
        """Return how many of ``wanted`` connections to a file ``host`` is known to
        admit."""
        known = self._admitted.get(host)
        if known is None or self._clock() - known[1] >= MEMORY_S:
            return wanted
        return min(wanted, known[0])

    def level(self, host: str, most: int) -> int:
        """How many connections ``host`` is worth at present, ``most`` at most."""
        with self._lock:
            known = self._hosts.get(host)
            return min(most, known.control.level if known else START)

    def join(self, host: str, most: int, *, limit: int) -> ConnectionShare:
        """One more download, that can use ``most`` connections; ``limit``: of all to
        this host, when it is new."""
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
        """A sign that ``host`` wants fewer connections: a 429, a 503, a reset."""
        with self._lock:
            if (known := self._hosts.get(host)) is not None and known.members:
                known.control.record_refusal(self._clock(), reason)

    def answered(self, host: str, seconds: float) -> None:
        """How long ``host`` took to answer."""
        with self._lock:
            if (known := self._hosts.get(host)) is not None and known.members:
                known.control.record_latency(self._clock(), seconds)

    def report(
        self, share: ConnectionShare, member: ShareMember, received: int, busy: int
    ) -> str:
        """See ``ConnectionShare.report``."""
        with self._lock:
            known = self._hosts[share.host]
            known.received += received - member.received
            member.received, member.busy = received, busy
            known.sample(self._clock())
            return known.control.reason

    def leave(self, share: ConnectionShare, member: ShareMember) -> None:
        """See ``ConnectionShare.leave``."""
        with self._lock:
            known = self._hosts[share.host]
            known.members.remove(member)
            known.left_at = self._clock()
            known.distribute()

    def _forget(self, now: float) -> None:
        """Hosts that nobody has asked for long."""
        self._hosts = {
            name: host
            for name, host in self._hosts.items()
            if host.members or now - host.left_at < MEMORY_S
        }
