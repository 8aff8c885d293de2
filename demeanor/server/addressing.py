"""Host names of requests, and which of them mean this machine."""

from __future__ import annotations

import ipaddress


def host_name(host: str) -> str:
    """The name in a Host header: lower case, without port and brackets."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Whether a host name means this machine whatever DNS says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
