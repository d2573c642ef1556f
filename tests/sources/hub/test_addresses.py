"""Where requests go: the endpoint, the next page of a listing, and redirects."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from source_cases import QUICK, TOKEN, Open, answer, answer_with, fetch, first

from ctgpu.errors import FetchError, SourceError, UsageError
from ctgpu.sources.hub.source import HubSource
from ctgpu.testing.hub import LocalHub


@pytest.mark.parametrize(
    "stated",
    [
        *(
            "huggingface.co",
            "ftp://hub",
            "http://",
            "http://:80",
            "http:///x",
            "//hub",
            "file:///x",
        ),
        *(
            "http://hub:99999",
            "http://hub:port",
            "http://hub:-1",
            "http://[::1",
            "http://[x]",
            "[::1",
        ),
    ],
)
def test_an_endpoint_that_is_no_address_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", stated)
    with pytest.raises(UsageError, match=r"^HF_ENDPOINT is '.*starts with https://.*correct or"):
        HubSource("a/b")
    with pytest.raises(UsageError, match="starts with https://"):
        HubSource("a/b", endpoint=stated)


@pytest.mark.slow
@pytest.mark.parametrize("stated", ["http://user:secret@hub:99999", "http://[::1"])
@pytest.mark.parametrize(
    "code",
    [
        "from ctgpu.sources.hub.source import HubSource; HubSource('a/b')",
        "from ctgpu.sources.hub.source import account_of; account_of(None, 'http://hub')",
        "from ctgpu.checking import doctor; print(doctor._token().text, doctor._endpoint().text)",
    ],
)
def test_an_endpoint_that_is_no_address_is_said_before_the_hub_library_meets_it(
    stated: str, code: str
) -> None:
    # huggingface_hub looks at the variable when it is imported, so this needs a new process.
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_ENDPOINT": stated},
        capture_output=True,
        text=True,
        check=False,
    )
    last = (ran.stdout or ran.stderr).splitlines()[-1]
    assert "HF_ENDPOINT is 'http://" in last
    assert "is not an address" in last
    assert ("HF_ENDPOINT is no address" in last) == ("doctor" in code)
    assert "secret" not in last


@pytest.mark.parametrize("form", [" {}", "{} ", "{}/ ", "{}//", "\t{}\n"])
def test_an_endpoint_may_have_blanks_and_slashes_around_it(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", form.format(hub.url))
    source = HubSource(hub.repo_id, patience=QUICK)
    assert len(source.list_volumes("valid")) == 3
    source.close()


def test_a_redirect_to_where_the_token_does_not_go_says_so(hub: LocalHub, open_hub: Open) -> None:
    hub.redirect = True
    hub.faults.statuses = {"cdn": [401] * QUICK.attempts}
    source = open_hub(token=TOKEN)
    with pytest.raises(
        FetchError,
        match=r"localhost answered 401 after a redirect, for the token goes to HF_ENDPOINT "
        r"\(127\.0\.0\.1\) only",
    ):
        fetch(source, first(source))


@pytest.mark.parametrize("place", ["ftp://x/", "file:///etc/passwd", "http://[", "http://a\x1bb/"])
def test_a_redirect_to_what_is_no_address_is_one_sentence(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source = open_hub()

    def do_get(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    with pytest.raises(SourceError, match="redirects to something that is no address"):
        _ = source.commit


def test_an_error_code_that_is_none_is_not_repeated(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_hub()
    ref = first(source)

    def do_get(handler: Any) -> None:
        handler.send_response(404)
        handler.send_header("X-Error-Code", "\x1b[2J" * 1000)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    with pytest.raises(FetchError, match=r"at the pinned revision \(status 404\)"):
        fetch(source, ref)


# --- pages -----------------------------------------------------------------------------------

ENTRY = '[{"type": "file", "path": "dataset/valid_fixed/a.npz", "size": 1}]'


@pytest.mark.parametrize("entries", [ENTRY, "[]"])
@pytest.mark.parametrize("link", ["</next>", "</next{}>"])
def test_pages_that_bring_nothing_new_end_the_listing(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, entries: str, link: str
) -> None:
    asked: list[str] = []

    def do_get(handler: Any) -> None:
        asked.append(handler.path)
        answer(handler, entries, Link=f'{link.format(len(asked))}; rel="next"')

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    with pytest.raises(SourceError, match=r"does not end.*check HF_ENDPOINT"):
        open_hub(hub.head).list_volumes("valid")
    assert len(asked) == (2 if entries == ENTRY else 1)


def test_a_listing_of_ever_new_entries_ends_too(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def do_get(handler: Any) -> None:
        asked.append(handler.path)
        page = ENTRY.replace("dataset/valid_fixed/a.npz", f"{len(asked)}.npz")
        answer(handler, page, Link=f'</next{len(asked)}>; rel="next"')

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    monkeypatch.setattr("ctgpu.sources.hub.source._MOST_PAGES", 20)
    with pytest.raises(SourceError, match=r"20 entries, .* too many pages; check HF_ENDPOINT"):
        open_hub(hub.head).list_volumes("valid")
    assert len(asked) == 20


def test_an_entry_that_is_on_two_pages_is_one_volume(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do_get(handler: Any) -> None:
        if handler.path == "/next":
            answer(handler, ENTRY)
        else:
            answer(handler, ENTRY, Link='</next>; rel="next"')

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    assert [ref.path for ref in open_hub(hub.head).list_volumes("valid")] == [
        "dataset/valid_fixed/a.npz"
    ]


@pytest.mark.parametrize(
    "link",
    ["http://localhost:{}/next", "https://127.0.0.1:{}/next", "http://[", "ftp://x/", "//x:99999/"],
)
def test_pages_that_lead_elsewhere_are_not_followed(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    asked: list[tuple[str, str]] = []

    def do_get(handler: Any) -> None:
        asked.append((handler.path, handler.headers["Authorization"]))
        answer(handler, ENTRY, Link=f'<{link.format(hub.port)}>; rel="next"')

    monkeypatch.setattr(hub._server.RequestHandlerClass, "do_GET", do_get)
    with pytest.raises(SourceError, match=r"listing at another address.*set HF_ENDPOINT"):
        open_hub(hub.head, token=TOKEN).list_volumes("valid")
    assert len(asked) == 1


def test_a_link_made_to_take_long_to_read_is_read_at_once(
    hub: LocalHub, open_hub: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Quadratic work would take minutes here.
    answer_with(hub, monkeypatch, ENTRY, Link="<" * 65_000)
    assert len(open_hub(hub.head).list_volumes("valid")) == 1
