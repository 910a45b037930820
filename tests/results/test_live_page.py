"""A study in a browser while it runs: who may see it, what it shows, and in a real browser."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from aiohttp import web
from browser import CHROMIUM, visit
from pretend import pretend
from scipy import ndimage

from raybone.cli import main
from raybone.data.annotations import mask_of
from raybone.data.dataset import open_dataset
from raybone.hpo.journal import Journal
from raybone.hpo.lease import Lease
from raybone.results.serve.scans import Look, Looks, looks_of
from raybone.results.serve.server import Live, application
from raybone.results.serve.webhook import tell
from raybone.results.study_folder import StudyFolder
from raybone.storage import Folder
from raybone.types import Lesion

BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@contextmanager
def served(study: Path) -> Iterator[str]:
    """The address that the command prints, with its token."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raybone", "watch", str(study), "--serve", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def until(session: requests.Session, url: str, wanted: Any) -> dict[str, Any]:
    for _ in range(240):
        found: dict[str, Any] = session.get(url, timeout=30).json()
        if wanted(found):
            return found
        threading.Event().wait(0.5)
    raise AssertionError(found)


def test_it_shows_report_scans_and_pictures_to_who_has_the_token(
    dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, "AP50", search={"trials": 4})
    with served(tmp_path / "st") as address:
        base = address.partition("?")[0]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}", address)
        for path in ("", "report", "state.json", "scans.json", "?token=wrong"):
            answer = requests.get(base + path, timeout=30)
            assert (answer.status_code, "token" in answer.text) == (403, True)
        session = requests.Session()
        front = session.get(address, timeout=30)
        assert front.url == base  # the token is in no address that a history or a proxy keeps
        assert "HttpOnly" in front.history[0].headers["Set-Cookie"]
        assert front.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in front.headers["Content-Security-Policy"]
        state = until(session, f"{base}state.json", lambda s: s["version"])
        assert "pretended" in state["lines"][0]
        assert "<title>pretended: report" in session.get(f"{base}report", timeout=60).text
        told = session.get(f"{base}scans.json", timeout=30).json()
        opened = open_dataset(dataset)
        assert {row["scan"] for row in told["rows"]} == {s.scan_id for s in opened.scans}
        first = told["rows"][0]["scan"]
        for which in ("truth", "found"):
            picture = session.get(f"{base}scans/{first}/{which}.png", timeout=60)
            assert picture.content.startswith(b"\x89PNG")
        assert session.get(f"{base}scans/../state.json/truth.png", timeout=30).status_code == 404
        assert session.get(f"{base}scans/none/truth.png", timeout=30).status_code == 404


def lesions_of(dataset: Path) -> dict[str, list[Lesion]]:
    """The malignant lesions of each scan."""
    return {
        s.scan_id: [le for le in s.lesions if le.category == "malignant"]
        for s in open_dataset(dataset).scans
    }


def test_errors_of_boxes_are_those_that_the_findings_have(dataset: Path, tmp_path: Path) -> None:
    pretend(tmp_path / "st", dataset, "AP50", search={"trials": 2})
    folder, known = StudyFolder(tmp_path / "st"), lesions_of(dataset)
    looks, best = looks_of(folder), folder.winner()
    assert best
    assert looks.config_id == best.id
    found = {f["scan_id"]: f for fold in best.predictions() or [] for f in fold}
    assert {row.scan for row in looks.rows} == known.keys()
    for row in looks.rows:
        high = sum(score >= 0.5 for score in found[row.scan]["scores"])
        hits = high - row.false_positives
        assert 0 <= hits <= len(known[row.scan])
        assert row.false_negatives == len(known[row.scan]) - hits
    assert sum(r.false_positives for r in looks.rows) > 0
    assert sum(r.false_negatives for r in looks.rows) > 0


def test_errors_of_masks_are_those_of_their_components(dataset: Path, tmp_path: Path) -> None:
    """Counted anew with scipy: a component finds a lesion with an IoU of at least a half."""
    pretend(tmp_path / "st", dataset, search={"trials": 2})
    folder, known = StudyFolder(tmp_path / "st"), lesions_of(dataset)
    looks, best = looks_of(folder), folder.winner()
    assert best
    found = {f["scan_id"]: f for fold in best.predictions() or [] for f in fold}
    for row in looks.rows:
        label_HW, count = ndimage.label(mask_of(found[row.scan]["masks"][0]), np.ones((3, 3)))
        truth = [mask_of(le.rle or {}) for le in known[row.scan]]
        overlap_CL = np.array(
            [
                [(p & t).sum() / (p | t).sum() >= 0.5 for t in truth]
                for p in (label_HW == n for n in range(1, count + 1))
            ]
        ).reshape(count, len(truth))
        assert row.false_positives == count - overlap_CL.any(1).sum()
        assert row.false_negatives == len(truth) - overlap_CL.any(0).sum()
    assert sum(len(le) for le in known.values()) > 0


def test_a_study_that_goes_on_is_drawn_again(tmp_path: Path) -> None:
    pretend(tmp_path / "st", search={"trials": 3}, stop_after=2)
    with served(tmp_path / "st") as address:
        session, base = requests.Session(), address.partition("?")[0]
        session.get(address, timeout=30)
        before = until(session, f"{base}state.json", lambda s: s["version"])
        Journal(Folder(tmp_path / "st")).append("end", reason="stopped by a test")
        after = until(session, f"{base}state.json", lambda s: s["version"] > before["version"])
        assert "stopped by a test" in after["lines"][0]
        assert "stopped by a test" in session.get(f"{base}report", timeout=60).text


@BROWSER
def test_in_a_browser_errors_are_filtered_and_gone_through_by_keys(
    dataset: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "st", dataset, "AP50", search={"trials": 3})
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}'}}))"
    choose = "(() => {{ const e = document.getElementById('{}'); e.value = '{}'; e.dispatchEvent(new Event('input')); return document.getElementById('count').textContent; }})()"
    about, tab = (
        "document.getElementById('about').textContent",
        "[...document.querySelectorAll('[role=tab]')].find(b => b.dataset.view === '{}').click()",
    )
    loaded = "new Promise(done => {{ const i = document.getElementById('{}'); const see = () => i.complete && i.naturalWidth ? done(i.naturalWidth) : setTimeout(see, 50); see(); }})"
    looks = looks_of(StudyFolder(tmp_path / "st"))
    with served(tmp_path / "st") as address:
        seen = visit(
            address,
            [
                tab.format("scans"),
                about,
                press.format("j"),
                about,
                press.format("ArrowUp"),
                about,
                loaded.format("truth"),
                loaded.format("found"),
                choose.format("kind", "fp"),
                choose.format("kind", "fn"),
                choose.format("fold", "1"),
                "document.getElementById('report').contentDocument.title",
            ],
        )
    assert seen.complaints == []
    answers = seen.answers
    assert answers[1] == answers[5] != answers[3]
    assert min(answers[6:8]) > 50
    rows, wrong = looks.rows, [r for r in looks.rows if r.false_negatives]
    assert answers[8] == f"{sum(r.false_positives > 0 for r in rows)} of {len(rows)} scans"
    assert answers[9] == f"{len(wrong)} of {len(rows)} scans"
    assert answers[10] == f"{sum(r.fold == 1 for r in wrong)} of {len(rows)} scans"
    assert answers[11] == "pretended: report"


@BROWSER
def test_five_hundred_configurations_and_two_thousand_scans_are_filtered(tmp_path: Path) -> None:
    pretend(tmp_path / "st", search={"trials": 500}, epochs=20, failing=5)
    rows = tuple(
        Look(f"scan{n:04d}", f"patient{n // 2:04d}", ("anterior", "posterior")[n % 2], n % 5, n / 2000, n % 3, n % 4, "")
        for n in range(2000)
    )  # fmt: skip
    live = Live(StudyFolder(tmp_path / "st"))
    live.refresh()
    live.looks = replace(Looks(), config_id="c007", metric="AP50", rows=rows)
    with in_thread(live) as address:
        timed = "(() => {{ const t = performance.now(); {}; return [performance.now() - t, document.getElementById('count').textContent]; }})()"
        filtered = timed.format("const e = document.getElementById('text'); e.value = 'patient01'; e.dispatchEvent(new Event('input'))")  # fmt: skip
        seen = visit(address, [filtered, "document.getElementById('body').children.length"])
    assert seen.complaints == [] or all("404" in c for c in seen.complaints)  # no pictures of these
    assert seen.answers[0][1] == "200 of 2000 scans"
    assert seen.answers[1] == 200


@contextmanager
def in_thread(live: Live, follows: bool = False) -> Iterator[str]:
    """The application as it is, with a follower that draws anew or without one."""
    app = application(live, "token")
    if not follows:
        app.cleanup_ctx.clear()
    loop, runner = asyncio.new_event_loop(), web.AppRunner(app, access_log=None)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/?token=token"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.mark.parametrize("at", ["8080", "localhost:80a", "nowhere:80", "127.0.0.1:99999", ":1"])
def test_what_is_no_address_is_refused(
    at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path / "st", search={"trials": 1})
    assert main(["watch", str(tmp_path / "st"), "--serve", at]) == 2
    assert "must be an address and a port" in capsys.readouterr().err


@contextmanager
def hook(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps what is posted."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret-path", told
        server.shutdown()


def follows(study: Path, url: str, said: list[str]) -> threading.Thread:
    """A webhook that has begun to follow a study."""
    follower = threading.Thread(target=lambda: tell(str(study), url, said.append, 0.05))
    follower.start()
    threading.Event().wait(0.5)
    return follower


def test_news_are_posted_from_when_it_is_asked(tmp_path: Path) -> None:
    pretend(tmp_path / "all", search={"trials": 12}, failing=2)
    events = list(Journal(Folder(tmp_path / "all")).events())
    source = StudyFolder(tmp_path / "all")
    place = Folder(tmp_path / "st")
    place.write("study.yaml", source.text or b"")
    journal = Journal(place)
    said: list[str] = []
    with hook() as (url, told):
        follower = follows(tmp_path / "st", url, said)
        for event in events:
            body = {k: v for k, v in event.items() if k not in ("event", "time", "up")}
            journal.append(event["event"], **body)
        follower.join(60)
    best = source.winner()
    assert best
    kinds = [one["event"] for one in told]
    assert kinds.count("failed") == 2
    assert kinds[-1] == "end"
    last = [one for one in told if one["event"] == "best"][-1]
    assert last["config_id"] == best.id == told[-1]["config_id"]
    assert last["text"].startswith(f"pretended: {best.id} is the best with dice 0.")
    assert said == []


def test_what_a_machine_says_is_not_posted(tmp_path: Path) -> None:
    pretend(tmp_path / "st", search={"trials": 2}, stop_after=1)
    said: list[str] = []
    with hook() as (url, told):
        follower = follows(tmp_path / "st", url, said)
        secret = "halted: OSError: [Errno 5] '/home/anna/Mueller/x.npy'"
        Journal(Folder(tmp_path / "st")).append("end", reason=secret, kind="halted")
        follower.join(60)
    (end,) = told
    assert end["reason"] == "halted; `raybone logs` says why"
    assert "Mueller" not in json.dumps(told)
    assert said == []


def test_that_a_driver_is_gone_is_posted_once(tmp_path: Path) -> None:
    pretend(tmp_path / "st", search={"trials": 2}, stop_after=1)
    lease = Lease(Folder(tmp_path / "st"))
    lease.take()
    with hook() as (url, told):
        follower = follows(tmp_path / "st", url, [])
        lease.drop()
        threading.Event().wait(0.5)
        Journal(Folder(tmp_path / "st")).append("end", reason="complete")
        follower.join(60)
    assert [one["event"] for one in told] == ["away", "end"]
    assert "no driver" in told[0]["text"]


def test_a_page_reads_on_after_its_storage_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had been read before the fault was lost for good."""
    pretend(tmp_path / "st", search={"trials": 3}, stop_after=2)
    whole = Journal.events
    away = threading.Event()

    def events(self: Journal) -> Iterator[Any]:
        for number, event in enumerate(whole(self)):
            if number == 5 and not away.is_set():
                away.set()
                raise OSError(116, "Stale file handle")
            yield event

    monkeypatch.setattr(Journal, "events", events)
    with in_thread(Live(StudyFolder(tmp_path / "st")), follows=True) as address:
        session, base = requests.Session(), address.partition("?")[0]
        session.get(address, timeout=30)
        shown = until(
            session, f"{base}state.json", lambda s: s["lines"] and "2/3 conf" in s["lines"][0]
        )
    assert away.is_set()
    assert "fold epochs" in shown["lines"][0]


@pytest.mark.parametrize("code", [500, 302])
def test_a_webhook_that_is_down_or_moved_stops_nothing_and_its_address_is_in_no_line(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path / "st", search={"trials": 2}, stop_after=1)
    said: list[str] = []
    with hook(code) as (url, told):
        thread = threading.Thread(target=lambda: tell(str(tmp_path / "st"), url, said.append, 0.05))
        thread.start()
        threading.Event().wait(0.5)
        Journal(Folder(tmp_path / "st")).append("end", reason="stopped")
        thread.join(60)
    assert len(told) == 1
    assert len(said) == 1
    assert f"{code}; end was not told" in said[0]
    assert "secret" not in said[0]
    assert main(["watch", str(tmp_path / "st"), "--webhook", "ftp://x/secret"]) == 2
    assert "secret" not in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "st"), "--once", "--webhook", "http://x"]) == 2
