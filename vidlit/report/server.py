"""The small server of ``vidlit watch``: it reads, and writes nothing.

It answers on this machine alone. A page in another tab of the browser can send requests here, too, and with a name of
its own that it points at 127.0.0.1 (DNS rebinding) could read the answers: requests whose ``Host`` is none of this
machine's are refused. Who listens elsewhere (``--host``) is asked for a token.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from vidlit.errors import UserError
from vidlit.held_lock import is_alive
from vidlit.report.live import ClipPreviews, LivePage, WatchedRuns
from vidlit.report.page import as_html

PORT = 7878
LOOPBACK = "127.0.0.1"
_OURS = ["127.0.0.1", "localhost", "::1", "[::1]"]
_COOKIE = "vidlit_watch_{port}"
"""Cookies know no ports: two servers of one machine would log each other out."""
_MOST_COMPARED = 16
_IDLE_SECONDS = 30.0
"""How long a server outlives the process it was started by while nobody asks: a page asks every two seconds."""

Answer = Callable[[Request], Awaitable[Response]]


class Headers(BaseHTTPMiddleware):
    """What keeps pages from being framed, guessed at, kept or told of elsewhere; and the token, where one is asked for.

    Args:
        app: what answers.
        token: that is asked for; empty for none.
        cookie: name of the cookie that holds it.
        seen: is told of each request.
    """

    def __init__(self, app: Any, token: str = "", cookie: str = "", seen: Callable[[], None] = lambda: None) -> None:
        super().__init__(app)
        self._token, self._cookie, self._seen = token, cookie, seen

    async def dispatch(self, request: Request, call_next: Answer) -> Response:
        """Ask for the token, answer, and add headers."""
        self._seen()
        response = self._ask(request) or await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _ask(self, request: Request) -> Response | None:
        """A refusal, or, of who brings the token in the address, the way to the same page without it."""
        if not self._token or _same(request.cookies.get(self._cookie), self._token):
            return None
        if _same(request.query_params.get("token"), self._token):
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            there = RedirectResponse(request.url.path + (f"?{urlencode(rest)}" if rest else ""), status_code=303)
            # Lax, not strict: a link in a chat or in a web terminal is a navigation from another site. Nothing writes.
            there.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            return there
        return PlainTextResponse("Open the address that `vidlit watch` printed: it holds the token.\n", 403)


def _same(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def make_app(runs: WatchedRuns, token: str = "", port: int = 0, seen: Callable[[], None] = lambda: None) -> Starlette:
    """The server's routes.

    Args:
        runs: what it shows.
        token: that is asked for; empty for none, and then requests must name this machine's own address.
        port: that it is reached at, which names the token's cookie.
        seen: is told of each request.
    """
    previews = ClipPreviews()

    def page_of(request: Request, several: bool) -> tuple[LivePage, list[str]]:
        names = list(dict.fromkeys(request.query_params.getlist("run")))[:_MOST_COMPARED]
        if runs.single and not names:
            names = [runs.single]
        return runs.page(*(names if several else names[:1])), names

    def show(request: Request, several: bool = False) -> Response:
        page, names = page_of(request, several)
        version, view = page.now()
        path = request.url.path.strip("/")
        asked = urlencode([("run", name) for name in names])
        updates = f"{path + '/' if path else ''}updates" + (f"?{asked}" if asked else "")
        return HTMLResponse(as_html(view, updates, version, home="" if runs.single or not names else "."))

    def changes(request: Request, several: bool = False) -> Response:
        page, _ = page_of(request, several)
        return JSONResponse(page.since(request.query_params.get("version", "")))

    def video(request: Request) -> Response:
        run = runs.record(request.query_params.get("run", ""))
        path = run.path / request.query_params.get("path", "")
        below = path.resolve().relative_to(run.path.resolve()).parts[:1] if run.holds(path) else ()
        if below not in (("samples",), ("test",)) or path.suffix != ".mp4":
            raise KeyError(path.name)
        return FileResponse(path, media_type="video/mp4")

    def clip(request: Request) -> Response:
        run = runs.record(request.query_params.get("run", ""))
        number = request.query_params.get("number", "")
        return FileResponse(previews.make(run, int(number) if number.isdecimal() else -1), media_type="video/mp4")

    every: dict[str, Callable[[Request], Response]] = {
        "/": show,
        "/updates": changes,
        "/run": show,
        "/run/updates": changes,
        "/compare": partial(show, several=True),
        "/compare/updates": partial(changes, several=True),
        "/video": video,
        "/clip": clip,
    }
    packed = [Middleware(GZipMiddleware, minimum_size=2000)]
    hosts = ["*"] if token else _OURS
    return Starlette(
        routes=[
            # Videos are as small as they get, and a part of one could not be found in what is packed again.
            Route(path, partial(_answer, answer), methods=["GET"], middleware=[] if answer in (video, clip) else packed)
            for path, answer in every.items()
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(Headers, token=token, cookie=_COOKIE.format(port=port), seen=seen),
        ],
    )


async def _answer(answer: Callable[[Request], Response], request: Request) -> Response:
    """In a thread, for files are read; what is not there, or cannot be read, in words."""
    try:
        return await asyncio.to_thread(answer, request)
    except UserError as error:
        return PlainTextResponse(f"{error}\n", 500)
    except (KeyError, FileNotFoundError):
        return PlainTextResponse("There is no such run, video or clip.\n", 404)
    except Exception as error:  # of a file that is being written, or of a video that is broken
        return PlainTextResponse(f"This cannot be shown ({type(error).__name__}).\n", 500)


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port is None:
        try:
            return socket.create_server((host, PORT), family=family)
        except OSError:
            port = 0
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", error)
        raise UserError(
            f"cannot listen at {host}, port {port} ({why}): give another --host or --port; without --port one is "
            "taken that is free."
        ) from error


class Watch:
    """A server of runs, bound to its port at once, that serves until it is told to stop.

    Args:
        root: a folder of runs, or a run.
        host: address to listen at.
        port: 0 for any that is free; ``None`` for :data:`PORT`, or any that is free where that is taken.
        with_process: number of a process with which it ends, once nobody looks any more; ``None`` for no such.
        with_token: whether to ask for a token on this machine, too, where others use it.

    Raises:
        UserError: the folder is not there, or the port is taken.
    """

    def __init__(
        self,
        root: Path,
        host: str = LOOPBACK,
        port: int | None = None,
        with_process: int | None = None,
        with_token: bool = False,
    ) -> None:
        is_open = host not in _OURS
        self.token = secrets.token_urlsafe(24) if is_open or with_token else ""
        runs = WatchedRuns(root)
        self._socket = _listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else socket.gethostname() if host == "0.0.0.0" else host
        self.address = f"http://{shown}:{self.port}/" + (f"?token={self.token}" if self.token else "")
        self._asked = time.monotonic()
        self._with_process = with_process
        config = uvicorn.Config(
            make_app(runs, self.token, self.port, self._note), log_level="error", access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)

    def _note(self) -> None:
        self._asked = time.monotonic()

    def serve(self) -> None:
        """Serve until Ctrl-C, or until the process that it goes with is gone and nobody asks."""
        if self._with_process is not None:
            threading.Thread(target=self._end_with, args=(self._with_process,), daemon=True).start()
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let :meth:`serve` return soon."""
        self._server.should_exit = True

    def _end_with(self, process: int) -> None:
        while is_alive(process) or time.monotonic() - self._asked < _IDLE_SECONDS:
            time.sleep(1.0)
        self.stop()
