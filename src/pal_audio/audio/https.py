"""Fetching sound from the web: https only, to public addresses only, also after every redirect, within bytes and time.

Source: our choice.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import quote, urljoin, urlsplit

URL_TIMEOUT_S = 30.0  # of one fetch, over all its redirects
MAX_REDIRECTS = 5


class FetchError(OSError):
    """Nothing was fetched; says why."""


def fetch(url: str, max_bytes: int) -> bytes:
    """The content behind an address.

    Raises:
        FetchError: it is not https, not public, too large, too slow or not there.
    """
    deadline_s = time.monotonic() + URL_TIMEOUT_S
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(url, deadline_s, max_bytes)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a URL, or no such host name
        raise FetchError(str(error)) from error
    raise FetchError(f"more than {MAX_REDIRECTS} redirects")


def _get(url: str, deadline_s: float, max_bytes: int) -> bytes | str:
    """The body behind an https URL, or the address to which it is redirected."""
    parts = urlsplit(url)
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise OSError("only https is fetched, also after a redirect")
    target = quote(f"{parts.path or '/'}?{parts.query}".rstrip("?"), safe="/?%:@!$&'()*+,;=~")
    connection = _PublicConnection(
        parts.hostname, parts.port or http.client.HTTPS_PORT, timeout=max(0.1, deadline_s - time.monotonic())
    )
    with contextlib.closing(connection):
        connection.connect()
        watchdog = threading.Timer(deadline_s - time.monotonic(), _shut, [connection.sock])  # of a server that drips
        watchdog.start()
        try:
            connection.sock.do_handshake()
            connection.request("GET", target, headers={"User-Agent": "pal-audio", "Accept-Encoding": "identity"})
            with connection.getresponse() as response:
                if response.status in (301, 302, 303, 307, 308):
                    return response.headers.get("Location", "")
                if response.status != 200:
                    raise OSError(f"the server answers {response.status} {response.reason}")
                promised, body = response.length or 0, bytearray()
                while max(promised, len(body)) <= max_bytes and (chunk := response.read1(2**16)):
                    body += chunk
        finally:
            watchdog.cancel()
    if max(promised, len(body)) > max_bytes:
        raise OSError(f"more bytes than max_bytes={max_bytes}")
    if time.monotonic() > deadline_s:
        raise OSError(f"not complete after {URL_TIMEOUT_S:g} s")
    if len(body) < promised:
        raise OSError(f"the connection ended after {len(body)} of {promised} bytes")
    return bytes(body)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed already
        sock.shutdown(socket.SHUT_RDWR)


class _PublicConnection(http.client.HTTPConnection):
    """HTTPS to a public address only: what was checked is what is connected to, a name is not resolved twice."""

    sock: ssl.SSLSocket
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        addresses = [str(info[4][0]) for info in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)]
        for address in addresses:
            if not _is_public(address):
                raise OSError(f"{self.host} is at {address}, which is not a public address")
        for address in addresses:
            with contextlib.suppress(OSError):
                plain = socket.create_connection((address, self.port), self.timeout)
                break
        else:
            raise OSError(f"{self.host} does not answer")
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in ipaddress.ip_network("2000::/3") or ip.sixtofour or ip.teredo):
        return False  # outside of global unicast, or an IPv4 address in disguise
    return ip.is_global and not ip.is_multicast
