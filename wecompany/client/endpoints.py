"""Where a server is, when its certificate is to be checked: TLS is imported only by whoever uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from wecompany.client.errors import ClientError


def tlsEndpoint(
    reactor: Any, host: str, port: int, ca: Path | None = None, certificate: tuple[Path, Path] | None = None
) -> IStreamClientEndpoint:
    """
    Return an endpoint that connects with TLS 1.2 or later, and only to a server that proves to be C{host}.

    @param host: a name or an IP address; the server's certificate has to be for it.
    @param ca: a PEM file with the certificates of the authorities to trust; the system's if not given.
    @param certificate: PEM files with the certificate that speaks for this user, whatever links it to an authority
        behind it, and with its key; both may be the same file.
    @raise ClientError: if a file is not what it should be, or TLS is not installed.
    @raise OSError: if a file cannot be read.
    """
    try:
        from wecompany.client.tls import connectionCreator, wrap
    except ImportError as e:
        raise ClientError(f'TLS needs pip install "wecompany[tls]" ({e})') from None
    return wrap(reactor, host, port, connectionCreator(host, ca, certificate))
