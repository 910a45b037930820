"""Headless Chromium over its DevTools protocol: what a page answers, complains of and asks for."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp  # Ray's dashboard has it

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRAWN = """new Promise(done => { const timer = setInterval(() => { if (document.documentElement.dataset.drawn) {
    clearInterval(timer); done(performance.now()); } }, 5); })"""


@dataclass
class Visit:
    """answers of the scripts; complaints of the console, and requests; milliseconds to the load
    event and to the last chart.
    """

    answers: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: float = 0.0
    drawn: float = 0.0


def visit(
    page: Path | str, scripts: Sequence[str] = (), width: int = 1300, dark: bool = False
) -> Visit:
    """Open a file or an address, wait until its charts are drawn, and run scripts in it, one after the other."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [
                str(CHROMIUM),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--user-data-dir={profile}",
                f"--window-size={width},1400",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = page if isinstance(page, str) else page.resolve().as_uri()
            return asyncio.run(_visit(Path(profile), url, scripts, dark))
        finally:
            browser.terminate()
            browser.wait(20)


async def _visit(profile: Path, url: str, scripts: Sequence[str], dark: bool) -> Visit:
    seen, began = Visit(), time.monotonic()
    while (
        not (profile / "DevToolsActivePort").exists()
        or not (profile / "DevToolsActivePort").read_text()
    ):
        assert time.monotonic() - began < 60, "chromium did not start"
        await asyncio.sleep(0.05)
    port = (profile / "DevToolsActivePort").read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            target = next(t for t in await answer.json() if t["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            number = 0

            async def ask(method: str, **params: Any) -> dict[str, Any]:
                nonlocal number
                number += 1
                await socket.send_json({"id": number, "method": method, "params": params})
                while True:
                    message = await asyncio.wait_for(socket.receive_json(), 60)
                    _note(seen, message)
                    if message.get("id") == number:
                        assert "error" not in message, message
                        return dict(message["result"])

            async def run(script: str) -> Any:
                found = await ask(
                    "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
                )
                assert "exceptionDetails" not in found, found["exceptionDetails"]
                return found["result"].get("value")

            for domain in ("Page", "Runtime", "Network", "Log"):
                await ask(f"{domain}.enable")
            if dark:
                await ask(
                    "Emulation.setEmulatedMedia",
                    features=[{"name": "prefers-color-scheme", "value": "dark"}],
                )
            await ask("Page.navigate", url=url)
            seen.drawn = await run(DRAWN)
            seen.loaded = await run("performance.getEntriesByType('navigation')[0].loadEventEnd")
            seen.answers = [await run(script) for script in scripts]
    return seen


def _note(seen: Visit, message: dict[str, Any]) -> None:
    method, params = message.get("method"), message.get("params", {})
    if method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
        seen.complaints.append(str([a.get("value", a.get("description")) for a in params["args"]]))
    elif method == "Runtime.exceptionThrown":
        seen.complaints.append(str(params["exceptionDetails"]))
    elif method == "Log.entryAdded":
        seen.complaints.append(str(params["entry"]["text"]))
    elif method == "Network.requestWillBeSent":
        seen.requests.append(str(params["request"]["url"]))
