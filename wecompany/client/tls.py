"""TLS as a client does it: the server's certificate is verified, and why it is not to be trusted is said in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS, trustRootFromCertificates

from wecompany.client.errors import ClientError

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)

_WORDS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is signed by itself, and not by an authority that is trusted here",
    19: "comes from an authority that is not trusted here",
    20: "comes from an authority that is not trusted here",
    21: "comes from an authority that is not trusted here",
    23: "has been revoked",
}
"""What the X509_V_ERR codes of OpenSSL mean, those that one meets."""


def explain(connection: object, otherwise: str) -> str:
    """
    Return why the server's certificate is not to be trusted.

    @param connection: whose handshake failed.
    @param otherwise: what to say where that cannot be found out.
    """
    # pyOpenSSL knows the reason and does not tell; to ask in its verification callback would replace Twisted's own,
    # which checks the name.
    try:
        code = SSL._lib.SSL_get_verify_result(connection._ssl)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return otherwise
    return f"its certificate {_WORDS[code]}" if code in _WORDS else otherwise


def _certificates(path: Path) -> list[Certificate]:
    try:
        found = [Certificate.loadPEM(pem) for pem in _PEM.findall(path.read_bytes())]
    except (crypto.Error, ValueError) as e:
        raise ClientError(f"{path}: a certificate in it is damaged: {e}") from None
    if not found:
        raise ClientError(f"{path}: there is no certificate in it")
    return found


def connectionCreator(
    host: str, ca: Path | None, certificate: tuple[Path, Path] | None
) -> IOpenSSLClientConnectionCreator:
    """Return what makes TLS connections to C{host}; see L{tlsEndpoint<wecompany.client.tlsEndpoint>}."""
    more: dict[str, object] = {}
    own = None
    if certificate is not None:
        first, *chain = _certificates(certificate[0])
        try:
            own = PrivateCertificate.loadPEM(first.dumpPEM() + certificate[1].read_bytes())
        except (crypto.Error, ValueError, VerifyError) as e:
            raise ClientError(f"{certificate[1]}: this is not the key of {certificate[0]}: {e}") from None
        more["extraCertChain"] = [link.original for link in chain]
    trusted = None if ca is None else trustRootFromCertificates(_certificates(ca))
    try:
        return optionsForClientTLS(host, trusted, own, extraCertificateOptions=more)
    except UnicodeError as e:
        raise ClientError(f"{host} is no name of a host: {e}") from None


def wrap(reactor: Any, host: str, port: int, creator: IOpenSSLClientConnectionCreator) -> IStreamClientEndpoint:
    """Return an endpoint that connects to C{host} with such connections."""
    endpoint: IStreamClientEndpoint = wrapClientTLS(creator, HostnameEndpoint(reactor, host, port))
    return endpoint
