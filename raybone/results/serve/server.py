"""A study in a browser: its report, drawn again as it goes on, and a page of its errors.

Who has the token sees all of it; it travels in the first address and then in a cookie. Nothing is
written, and the study is asked for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from raybone.errors import MachineFault, WrongInput
from raybone.hpo.lease import EXPIRES, Lease
from raybone.hpo.state import State
from raybone.results.report import report
from raybone.results.serve.scans import Looks, looks_of
from raybone.results.study_folder import StudyFolder
from raybone.results.watch import status_lines, status_of

POLL = 2.0  # seconds between two looks at the journal
REST = 4.0  # times as long as a drawing took until the next
AWAY = (MachineFault, WrongInput, OSError)
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Live:
    """What the page shows; ``version`` counts the drawings, ``lines`` are those of ``watch``,
    ``fault`` is why it was not drawn the last time.
    """

    folder: StudyFolder
    version: int = 0
    lines: list[str] = field(default_factory=list)
    html: bytes = b""
    looks: Looks = field(default_factory=Looks)
    over: bool = False
    fault: str = ""

    def refresh(self) -> None:
        """Draw the report again, and look at the scans again when another one is the best."""
        folder = StudyFolder(self.folder.url, self.folder.moved)
        with tempfile.TemporaryDirectory(prefix="raybone-") as place:
            file = Path(place) / "report.html"
            report(folder.url, str(file), moved=folder.moved)
            html = file.read_bytes()
        best = folder.winner()
        if best is None or best.id != self.looks.config_id:
            self.looks = looks_of(folder)
        self.html, self.version = html, self.version + 1

    def status(self, state: State) -> None:
        """The lines of a study, and whether it has ended."""
        driven = Lease(self.folder.files).holder(EXPIRES) is not None
        lines = status_lines(status_of(self.folder.study, state, driven))
        self.lines = [self.fault or lines[0], *lines[1:]]
        self.over = bool(state.end)


def serve(study: str, at: str, tell: Callable[[str], None], dataset: str = "") -> None:
    """Serve a study until Ctrl-C.

    Args:
        at: HOST:PORT; port 0 takes a free one.
        tell: is told the address, with the token.
        dataset: where the study's dataset is now, if it was moved.
    Raises:
        WrongInput: no study or not its dataset there, or no such address.
        MachineFault: the port is taken.
    """
    folder = StudyFolder(study, dataset)
    folder.state, folder.study  # noqa: B018  # refuse a journal that was cut, another dataset
    host, port = _address(at)
    live = Live(folder)
    token = secrets.token_urlsafe(24)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(live, (host, port), token, tell))


async def _run(live: Live, place: tuple[str, int], token: str, tell: Callable[[str], None]) -> None:
    runner = web.AppRunner(application(live, token), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, *place)
        try:
            await site.start()
        except OSError as error:
            raise MachineFault(
                f"--serve {place[0]}:{place[1]}: cannot listen there ({error.strerror}); choose "
                "another port"
            ) from None
        host, port = runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{port}/?token={token}")
        if not ipaddress.ip_address(host).is_loopback:
            tell("warning: what is served is not encrypted: whoever listens on the network has it")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(live: Live, token: str) -> web.Application:
    """The pages of a study, for those who have the token."""
    nonce = secrets.token_urlsafe(16)

    async def front(_: web.Request) -> web.Response:
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; "
            "img-src 'self' data:; connect-src 'self'; frame-src 'self'"
        )
        page = files("raybone.results").joinpath("live.html").read_text("utf-8")
        text = page.replace("{{ nonce }}", nonce)
        return web.Response(
            text=text, content_type="text/html", headers={"Content-Security-Policy": policy}
        )

    async def drawn(_: web.Request) -> web.Response:
        return web.Response(body=live.html or b"drawing ...", content_type="text/html")

    async def state(_: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": live.version,
                "lines": live.lines,
                "over": live.over,
                "config": live.looks.config_id,
            }
        )

    async def scans(_: web.Request) -> web.Response:
        return web.json_response(live.looks.told())

    async def picture(request: web.Request) -> web.Response:
        which = request.match_info["which"]
        made = await asyncio.to_thread(live.looks.pictures, request.match_info["scan"])
        if made is None:
            raise web.HTTPNotFound(text="no such scan, or one that may show a name")
        return web.Response(body=made[which == "found"], content_type="image/png")

    app = web.Application(middlewares=[_guard(token)])
    app.add_routes(
        [
            web.get("/", front),
            web.get("/report", drawn),
            web.get("/state.json", state),
            web.get("/scans.json", scans),
            web.get("/scans/{scan}/{which:truth|found}.png", picture),
        ]
    )
    app.cleanup_ctx.append(_following(live))
    return app


def _guard(token: str) -> Any:
    """Nothing for those without the token; it moves from the address into a cookie, whose name is
    its own, as those of several studies on one host are sent to each of them.
    """
    cookie = f"raybone-{secrets.token_hex(4)}"

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        said = request.query.get("token")
        if said is not None and hmac.compare_digest(said.encode(), token.encode()):
            answer: web.StreamResponse = web.HTTPSeeOther(request.path)
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict", path="/")
        elif hmac.compare_digest(request.cookies.get(cookie, "").encode(), token.encode()):
            answer = await handler(request)
        else:
            answer = web.Response(
                status=403, text="needs the token: open the address that raybone watch has printed"
            )
        answer.headers.update(HEADERS)
        return answer

    return guard


def _following(live: Live) -> Callable[[web.Application], AsyncIterator[None]]:
    """Follow the journal for the time of the application."""

    changed = asyncio.Event()

    async def follow() -> None:
        journal, state = live.folder.journal(), State()
        changed.set()
        while True:
            try:
                for event in await asyncio.to_thread(list, journal.events()):
                    state.apply(event)
                    changed.set()
                await asyncio.to_thread(live.status, state)
            except AWAY as error:  # what was read before it may be lost: all is read again
                live.lines[:1] = [f"what is shown is old: {error}"]
                journal, state = live.folder.journal(), State()
            await asyncio.sleep(POLL)

    async def draw() -> None:
        while True:
            await changed.wait()
            changed.clear()
            began = time.monotonic()
            try:
                await asyncio.to_thread(live.refresh)
                live.fault = ""
            except Exception as error:  # a page that is not drawn is said on it, whatever it was
                live.fault = f"what is shown is old: {' '.join(str(error).split())[:300]}"
                changed.set()
            await asyncio.sleep(max(POLL, REST * (time.monotonic() - began)))

    async def context(_: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each()) for each in (follow, draw)]
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return context


def _address(at: str) -> tuple[str, int]:
    host, _, port = at.rpartition(":")
    try:
        if not host or not 0 <= int(port) < 2**16:
            raise ValueError
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise WrongInput(
            f"--serve {at}: must be an address and a port, such as 127.0.0.1:8080; change it"
        ) from None
    return host.strip("[]"), int(port)
