"""What the local Hub serves in these tests, and one request for it."""

from __future__ import annotations

import http.client

from ctgpu.testing.hub import LocalHub

FILE = "dataset/valid_fixed/valid_1/valid_1_a_1.npz"
TOKEN = "hf_secret"


def get(hub: LocalHub, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Its answer for the file, and that answer's body."""
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=5)
    try:
        address = f"/datasets/{hub.repo_id}/resolve/main/{FILE}"
        connection.request("GET", address, headers={"Authorization": f"Bearer {TOKEN}", **headers})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()
