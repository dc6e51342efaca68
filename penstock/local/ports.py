"""Picks free ports on the loopback interface, outside the range the system gives to outgoing connections.

From inside that range a client that retries a broker which is down may be given the broker's own port as its local
one, connect to itself, and keep the broker from coming back.
"""

import random
import socket
from pathlib import Path


def free_port() -> int:
    """A TCP port that nothing on 127.0.0.1 listens on now."""
    lowest = _lowest_ephemeral_port()
    draw = random.SystemRandom()
    for _ in range(200):
        port = draw.randrange(min(20000, lowest - 5000), lowest)
        if is_free(port):
            return port
    raise OSError(f"none of 200 ports below {lowest} was free on 127.0.0.1")


def _lowest_ephemeral_port() -> int:
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        lowest = 49152
    # a system that gives out nearly all ports leaves no room below
    return lowest if lowest >= 10000 else 32768


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
