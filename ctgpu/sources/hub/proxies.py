"""Which proxy a request goes through, as the environment says."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ctgpu.errors import SourceError


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy.

    Attributes
    ----------
    address : str
        ``http://HOST:PORT`` or ``https://HOST:PORT``.
    account : str or None
        ``USER:PASSWORD``, percent-encoded.
    """

    address: str
    account: str | None = field(default=None, repr=False)


class Proxies:
    """The proxies of this process's environment (on some systems of its settings) as it is now."""

    def __init__(self) -> None:
        self._stated = urllib.request.getproxies()

    def of(self, url: str) -> Proxy | None:
        """The proxy for a URL, None to go without.

        Raises
        ------
        SourceError
            If it is of a kind that cannot be used; its account is not shown.
        """
        parts = urlsplit(url)
        for kind in (parts.scheme, "all"):
            if stated := self._stated.get(kind, "").strip():
                break
        else:
            return None
        place = parts.netloc.rpartition("@")[2]
        if any(urllib.request.proxy_bypass(host) for host in (parts.hostname or "", place)):
            return None
        # Most programs take HOST:PORT for an HTTP proxy.
        scheme, _, rest = stated.rpartition("://")
        account, _, place = rest.rstrip("/").rpartition("@")
        address = f"{scheme.lower() or 'http'}://{place}"
        try:
            usable = urlsplit(address).port != 0 and urlsplit(address).hostname
        except ValueError:
            usable = None
        if not usable or not address.startswith(("http://", "https://")):
            raise SourceError(
                f"the proxy {address} that {kind}_proxy names cannot be used; wanted "
                "http://HOST:PORT (or https://), or no_proxy to list the hosts that need none"
            )
        return Proxy(address, account or None)
