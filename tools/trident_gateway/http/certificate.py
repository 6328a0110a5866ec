"""The certificate of the public port, which is read again when its files change.

Owns the context for new connections. Never touches a connection that is open, and never gives up a certificate that
works for one that does not.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from cryptography import x509

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.settings import TlsSettings

_LOOK_EVERY_S = 2.0

Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate and its key.

    Args:
        files: hold them, in PEM; the certificate's also those between it and the root.
        set_end: takes until when the certificate in use is valid, in seconds since 1970.
        fail: is told when files that have changed cannot be used.

    Raises:
        ConfigError: the files cannot be used.
    """

    def __init__(self, files: TlsSettings, set_end: Callable[[float], None], fail: Callable[[str], None]) -> None:
        self._files = files
        self._set_end = set_end
        self._fail = fail
        self._stamp = self._read_stamp()
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            raise ConfigError(f"--tls-cert, --tls-key: cannot be used: {_reason(error)}") from error
        self._task: asyncio.Task[None] | None = None
        #: For the port. It hands each new connection on to the context of the certificate in use, since a context
        #: that is given a second certificate with a key of another kind would go on to show the first one.
        self.context = _context()
        self.context.load_cert_chain(files.certificate, files.key)
        self.context.sni_callback = self._choose

    def start(self) -> None:
        """Begin to look for changes."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def close(self) -> None:
        """Stop looking for changes."""
        if self._task is not None:
            self._task.cancel()

    def look(self) -> None:
        """Read the files again if they have changed."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        try:
            self._current = self._load()
        except (OSError, ValueError) as error:
            self._fail(f"--tls-cert, --tls-key: have changed and cannot be used: {_reason(error)}")
        # Of files that are replaced one after the other the second will change the stamp again.
        self._stamp = stamp

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = _context()
        context.load_cert_chain(self._files.certificate, self._files.key)
        certificate = x509.load_pem_x509_certificate(self._files.certificate.read_bytes())
        self._set_end(certificate.not_valid_after_utc.timestamp())
        return context

    def _read_stamp(self) -> Stamp:
        stamps = []
        for path in (self._files.certificate, self._files.key):
            try:
                status = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamps)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "they do not belong together, or are no PEM files"
    return getattr(error, "strerror", None) or "they are no PEM files"
