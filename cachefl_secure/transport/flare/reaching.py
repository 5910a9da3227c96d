"""Whether a site and FLARE's server hear each other, and if not, which certificate is at fault.

FLARE tries again for ever and says nothing to people. That nobody answers is told until somebody did once: the
coordinator may just run no round. That certificates do not fit is told at any time.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cachefl_secure.transport.flare.engine import FlareEngine

_LOOK_SECONDS, _AGAIN_SECONDS = 10.0, 60.0
_CONNECT_SECONDS, _WORD_SECONDS = 5.0, 1.0
_AWAY = "does not answer yet; this silo waits for it"
_CLOSED = "ends every connection at once: it seems to refuse this site's certificate"
"""What FLARE's server does by gRPC when it refuses one. One that is just ending looks the same, once."""


@dataclass(slots=True)
class Reached:
    """Tells a silo's operator. ``folder`` is the site's, with its key and certificates."""

    engine: FlareEngine
    folder: Path
    tell: Callable[[str], None]
    _next: float = 0.0
    _was_reached: bool = False
    _was_closed: bool = False
    _told: str = ""

    def look(self) -> None:
        """Connects, at times."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (_AGAIN_SECONDS if self._was_reached else _LOOK_SECONDS)
        trouble = trouble_at(self.engine, self.folder)
        was_closed, self._was_closed = self._was_closed, trouble == _CLOSED
        if (trouble == _AWAY and self._was_reached) or (trouble == _CLOSED and not was_closed):
            return
        self._was_reached |= not trouble
        if trouble != self._told:
            self.tell(f"{self.engine.target} {trouble or 'answers'}")
        self._told = trouble


def trouble_at(engine: FlareEngine, folder: Path) -> str:
    """Why the site whose folder this is cannot talk to FLARE's server; empty if it can."""
    startup = folder / "startup"
    context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
    context.set_alpn_protocols(["h2"])  # gRPC hears nobody without it
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        with (
            socket.create_connection((engine.host, engine.port), timeout=_CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=engine.host) as line,
        ):
            return _refusal(line)
    except ssl.SSLCertVerificationError as error:
        return f"shows a certificate that does not hold here: {error.verify_message}"
    except ssl.SSLError as error:
        return f"makes no secure connection: {_words(error)}"
    except OSError:
        return _AWAY


def _refusal(line: ssl.SSLSocket) -> str:
    """A server says only after the handshake whether it takes the client's certificate."""
    line.settimeout(_WORD_SECONDS)
    try:
        return "" if line.recv(1) else _CLOSED
    except TimeoutError:
        return ""  # it waits for this side to speak
    except ssl.SSLError as error:
        return f"refuses this site's certificate: {_words(error)}"
    except ConnectionError:
        return _CLOSED


def _words(error: ssl.SSLError) -> str:
    """OpenSSL's reason, which quotes nothing."""
    return (error.reason or "unknown reason").lower().replace("_", " ")
