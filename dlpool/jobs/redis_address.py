"""The parser of the URL of a queue's server: a single server, the master that Sentinels
name, or a Cluster. Pure."""

from __future__ import annotations

import re

from dlpool.dataclass import dataclass

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
PORTS = {"sentinel": 26379, "cluster": 6379}

_MANY = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://"
    r"(?P<user>[^/?#]*@)?(?P<hosts>[^/?#@]+)(?:/(?P<path>[^?#]*))?(?P<query>\?[^#]*)?"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class RedisAddress:
    """A parsed URL. ``kind``: server, sentinel or cluster.

    ``server_url``: URL in the syntax of redis-py, with the options for all connections;
    its host is ignored if ``hosts`` is not empty. ``hosts``: (host, port) of the
    Sentinels or Cluster nodes. ``service``: the master's name at the Sentinels.
    """

    kind: str
    server_url: str
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Parse a URL. Raises ValueError for an invalid URL; the message may contain a
        secret. redis-py checks the parts that are not parsed here."""
        if "#" in url:
            raise ValueError("redis-py would ignore the rest")
        if "+" not in url.partition("://")[0]:
            return cls("server", url)
        match = _MANY.fullmatch(url)
        if match is None:
            raise ValueError("not of the form SCHEME://HOST:PORT,HOST:PORT/...")
        kind, path = match["kind"], match["path"] or ""
        service, _, db = path.partition("/") if kind == "sentinel" else ("", "", path)
        if (kind == "sentinel") != bool(service) or not re.fullmatch(
            "[0-9]*" if kind == "sentinel" else "0?", db
        ):
            raise ValueError(
                "a Sentinel's is /SERVICE[/DB], a Cluster has one database"
            )
        hosts = tuple(_host(text, PORTS[kind]) for text in match["hosts"].split(","))
        user, query = match["user"] or "", match["query"] or ""
        server_url = f"{match['scheme']}://{user}localhost/{db}{query}"
        return cls(kind, server_url, hosts, service)


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    number = int(match[2] or port) if match else 0
    if match is None or not 0 < number < 65536:
        raise ValueError("not HOST:PORT")
    return match[1].strip("[]"), number
