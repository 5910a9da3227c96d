"""Which engine: the URL that the coordinator chose, and whether FLARE is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from cachefl_secure.errors import ConfigError, MissingExtra

EXTRA = "nvflare"
SUPPORTED = (2, 9)
"""The minor version that the hardening of ``kits`` and ``running`` was written for. Another one is refused."""

Scheme = Literal["grpc", "http", "tcp"]
_PREFIX = "nvflare+"
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*\Z")


@dataclass(frozen=True, slots=True)
class FlareEngine:
    """Where FLARE's server listens, and how it talks."""

    scheme: Scheme
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"{_PREFIX}{self.scheme}://{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """As FLARE writes it."""
        return f"{self.host}:{self.port}"

    @property
    def listens_on(self) -> str:
        """The address that the server binds: a loopback name stays on this machine, any other means all of it."""
        return "127.0.0.1" if self.is_loopback else "0.0.0.0"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_engine(url: str, *, file: str = "--engine") -> FlareEngine:
    """``nvflare+grpc://host:port``, also ``+http`` (WebSocket, for proxies) and ``+tcp``.

    Raises:
        ConfigError: another scheme, no host or port, an IPv6 address, or more than a host and a port.
    """

    def refuse(reason: str) -> ConfigError:
        return ConfigError(file, "", f"{url[:200]!r} {reason}")

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refuse("is no URL with a host and a port from 1 to 65535") from None
    scheme = parts.scheme.removeprefix(_PREFIX)
    if not parts.scheme.startswith(_PREFIX) or scheme not in get_args(Scheme):
        raise refuse("does not begin with nvflare+grpc://, nvflare+http:// or nvflare+tcp://")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise refuse("says more than a host and a port")
    if not parts.hostname or port is None or port == 0:
        raise refuse("lacks a host or a port: write nvflare+grpc://host:8002")
    if not _HOST.match(parts.hostname) or len(parts.hostname) > 63:
        raise refuse("has no host name of at most 63 characters or IPv4 address (FLARE takes no IPv6)")
    return FlareEngine(_known(scheme), parts.hostname, port)


def require_nvflare() -> None:
    """Returns if the supported version of FLARE is installed. Does not import it.

    Raises:
        MissingExtra: it is absent, or another version than this one was written for.
    """
    if importlib.util.find_spec("nvflare") is None:
        raise MissingExtra(EXTRA)
    version = importlib.metadata.version("nvflare")
    if tuple(version.split(".")[:2]) != tuple(map(str, SUPPORTED)):
        raise MissingExtra(EXTRA, f"version {version} is installed, 2.9 is needed")


def _known(scheme: str) -> Scheme:
    for known in get_args(Scheme):
        if scheme == known:
            return known  # type: ignore[no-any-return]
    raise AssertionError(scheme)
