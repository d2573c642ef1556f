"""What goes wrong at a :class:`~ctgpu.testing.hub.LocalHub`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Endpoint = Literal["info", "tree", "resolve", "cdn"]
BodyFault = Literal["truncate", "reset", "stall", "trickle", "flip"]
AnswerFault = Literal["continue", "trickle_head", "trickle_body"]


@dataclass
class Faults:
    """What goes wrong, and how often; lists are used up from the front.

    Attributes
    ----------
    statuses : dict
        Per endpoint (``info``, ``tree``, ``resolve``, ``cdn``) the statuses that its next requests
        are answered with; 200 means a good answer.
    bodies : list of str
        What happens to the next bodies: ``truncate`` and ``reset`` end them half way, ``stall``
        stops sending, ``trickle`` sends a byte at a time, ``flip`` changes one bit.
    answers : dict
        Per endpoint, how its next answers never end: ``continue`` sends ``100 Continue`` again and
        again, ``trickle_head`` a header line, ``trickle_body`` what a listing, a refusal or a
        redirect has as its body, a byte at a time.
    expired_redirects : int
        That many next redirects lead to an address that is no longer valid (403).
    ignore_range : bool
        Answer a ranged request with the whole file and status 200.
    retry_after : str or None
        ``Retry-After`` sent with statuses 429 and 503.
    rate_limit, rate_limit_policy : str or None
        Headers ``RateLimit`` and ``RateLimit-Policy`` sent with every answer but the CDN's.
    failure_rate : float
        Share of all requests that fail, each in a random way.
    seed : int
        Which ones fail, and how: the same for the n-th request of one address in every run.
    """

    statuses: dict[Endpoint, list[int]] = field(default_factory=dict)
    bodies: list[BodyFault] = field(default_factory=list)
    answers: dict[Endpoint, list[AnswerFault]] = field(default_factory=dict)
    expired_redirects: int = 0
    ignore_range: bool = False
    retry_after: str | None = None
    rate_limit: str | None = None
    rate_limit_policy: str | None = None
    failure_rate: float = 0.0
    seed: int = 0
