"""Who may come in, and what every answer carries: the outermost layer of the service."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boltzformer.apps.service.jobs import where

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/healthz", "/", "/favicon.ico")
PAGE_PATH = "/page/"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Attributes:
        hosts: names under which the service may be called; another page that points its own name here is refused.
        token: what a client has to show as `Authorization: Bearer TOKEN`; empty asks for none.
    """

    hosts: tuple[str, ...] = LOOPBACK
    token: str = ""


class Gate:
    """ASGI middleware: checks host, origin and token, adds security headers, and lets no traceback out.

    Args:
        app: the service.
        access: who may come in.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 400, 401 or 403."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith(PAGE_PATH):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            refusal = self._refusal(Headers(scope=scope), scope["path"])
            await (refusal or self.app)(scope, receive, guarded)
        except Exception as error:
            logger.error("unexpected: %s", where(error))
            if not started:
                await JSONResponse({"error": "the service failed; see its log."}, 500)(scope, receive, guarded)

    def _refusal(self, headers: Headers, path: str) -> JSONResponse | None:
        host = _host(f"//{headers.get('host', '')}")
        if host not in self.access.hosts:
            return JSONResponse({"error": "this service is not known by that host name (option --allow-host)."}, 400)
        origin = headers.get("origin")
        # a page of another origin may send forms here, though it could not read the answer
        if origin is not None and _place(origin) != headers.get("host"):
            # one cause is no attack: a proxy that names itself, or leaves out the port
            told = "requests from other sites are refused; a proxy in front has to pass the Host header on as it came."
            return JSONResponse({"error": told}, 403)
        if not self.access.token or path in OPEN_PATHS or path.startswith(PAGE_PATH):
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self.access.token.encode()):
            return None
        wants = {"www-authenticate": "Bearer"}
        return JSONResponse({"error": "a token is needed: Authorization: Bearer TOKEN."}, 401, wants)


def _place(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # such as http://[
        return ""


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def allowed_hosts(host: str, more: Iterable[str]) -> tuple[str, ...]:
    """The names under which a service on `host` may be called."""
    return tuple(dict.fromkeys([*LOOPBACK, host.lower(), *(name.lower() for name in more)]))
