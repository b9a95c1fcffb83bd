"""The network between one supervisor and Redis. Each fault hits all ways at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.proxy import Proxy
from tests.redis_kinds import NAME, Replicated


class Relay(Proxy):
    """To a Sentinel: where it names a server's port, the client gets that of the proxy before it."""

    def __init__(self, upstream: tuple[str, int], ports: Mapping[int, int]) -> None:
        self._ports = {_as_reply(real): _as_reply(shown) for real, shown in ports.items()}
        super().__init__(upstream)

    def _edited(self, data: bytes) -> bytes:
        for real, shown in self._ports.items():
            data = data.replace(real, shown)
        return data


class Network:
    """``url`` is what the supervisor is given."""

    def __init__(self, url: str, proxies: list[Proxy]) -> None:
        self.url = url
        self._proxies = proxies

    @classmethod
    def to_one(cls, socket: Path) -> Network:
        """To a Redis."""
        proxy = Proxy(socket)
        return cls(proxy.url, [proxy])

    @classmethod
    def to_replicated(cls, redis: Replicated) -> Network:
        """To a Sentinel, and to the servers that it names."""
        ways = {server.port: Proxy(("127.0.0.1", server.port)) for server in redis.servers if server.port is not None}
        relay = Relay(("127.0.0.1", redis.port), {port: way.port for port, way in ways.items()})
        return cls(f"redis+sentinel://127.0.0.1:{relay.port}/{NAME}", [relay, *ways.values()])

    def each(self, act: Callable[[Proxy], object]) -> None:
        """Do something with all ways."""
        for proxy in self._proxies:
            act(proxy)

    def pass_on(self) -> None:
        """Be a good network from now on."""
        self.each(Proxy.pass_on)

    def drop(self) -> None:
        """Close all connections."""
        self.each(Proxy.drop)

    def swallow_next(self, marker: bytes, *, silent: bool) -> None:
        """Lose the reply to the next such command, once on each way."""
        self.each(lambda proxy: proxy.swallow_next(marker, silent=silent))

    def swallow_all(self) -> None:
        """Lose all replies."""
        self.each(Proxy.swallow_all)

    def blackhole(self) -> None:
        """Hold all back."""
        self.each(Proxy.blackhole)

    def slow_down(self, seconds: float) -> None:
        """Deliver all later."""
        self.each(lambda proxy: proxy.slow_down(seconds))

    def refuse(self) -> None:
        """Let nobody in."""
        self.each(Proxy.refuse)

    def close(self) -> None:
        """End it for good."""
        self.each(Proxy.close)


def _as_reply(port: int) -> bytes:
    """As Redis writes it."""
    return b"$%d\r\n%d\r\n" % (len(str(port)), port)
