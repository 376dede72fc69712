"""Loaded by every Python process whose PYTHONPATH names this folder: it cuts the network, except loopback.

``NO_NETWORK`` says how: ``refused`` (an error at once) or ``hanging`` (no answer, ever). Every attempt is
noted in the file that ``NO_NETWORK_LOG`` names.
"""

import os
import socket
import time
from typing import Any, NoReturn

MODE = os.environ["NO_NETWORK"]
LOOPBACK = ("127.", "::1", "localhost")
real_connect, real_getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _cut(what: object) -> NoReturn:
    with open(os.environ["NO_NETWORK_LOG"], "a") as log:
        log.write(f"{what}\n")
    while MODE == "hanging":
        time.sleep(60)
    raise ConnectionRefusedError(f"[cut for a test] connection to {what} refused")


def _is_local(host: object) -> bool:
    return host is None or str(host) in ("", "0.0.0.0", "::") or str(host).startswith(LOOPBACK)


def connect(self: socket.socket, address: Any) -> None:
    """Like ``socket.connect``, for addresses on this machine only."""
    if self.family != socket.AF_UNIX and not _is_local(address[0]):
        _cut(address)
    return real_connect(self, address)


def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    """Like ``socket.getaddrinfo``, for names of this machine only."""
    if not _is_local(host):
        _cut(host)
    return real_getaddrinfo(host, *arguments, **options)


socket.socket.connect = connect  # type: ignore[method-assign,assignment]
socket.getaddrinfo = getaddrinfo
