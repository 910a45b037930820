"""Scans from a DICOMweb archive and findings into one: a real Orthanc where there is one, and one
that fails.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest
import requests
from bundles import bundle_of

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.dicom import web
from raybone.errors import WrongInput

PLUGINS = Path("/usr/share/orthanc/plugins")
ORTHANC = shutil.which("Orthanc")
AUTH = ("raybone", "phantom-password")
REAL = pytest.mark.skipif(
    not (ORTHANC and (PLUGINS / "libOrthancDicomWeb.so").exists()),
    reason="no Orthanc with its DICOMweb plugin here (apt-get install orthanc orthanc-dicomweb)",
)


@pytest.fixture(scope="module")
def orthanc(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An archive that holds the cohort, and asks for a password."""
    place = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([AUTH]),
        "StorageDirectory": str(place / "db"),
        "IndexDirectory": str(place / "db"),
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (place / "orthanc.json").write_text(json.dumps(config))
    with (place / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [str(ORTHANC), str(place / "orthanc.json")], stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                requests.get(f"{url}/system", auth=AUTH, timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        for file in sorted(cohort.rglob("*.dcm")):
            requests.post(
                f"{url}/instances", data=file.read_bytes(), auth=AUTH, timeout=60
            ).raise_for_status()
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBONE_DICOMWEB_USER", AUTH[0])
    monkeypatch.setenv("RAYBONE_DICOMWEB_PASSWORD", AUTH[1])


@REAL
@pytest.mark.usefixtures("known")
def test_an_archive_gives_the_dataset_that_its_folder_gives(
    orthanc: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--folds", "3", "--key", str(tmp_path / "key")]
    source = f"dicomweb:{orthanc}/dicom-web"
    assert main(["prepare", source, str(tmp_path / "web"), *words]) == 0
    said = capsys.readouterr()
    assert AUTH[1] not in said.out + said.err
    (tmp_path / "scans").mkdir()  # the cohort's annotations lie beside its scans, in no archive
    for number, file in enumerate(sorted(cohort.rglob("*.dcm"))):
        shutil.copy(file, tmp_path / f"scans/{number}.dcm")
    assert main(["prepare", str(tmp_path / "scans"), str(tmp_path / "folder"), *words]) == 0
    fetched, read = (open_dataset(tmp_path / name) for name in ("web", "folder"))
    assert fetched.hash == read.hash
    assert len(fetched.scans) == len(read.scans) > 0
    left = {p.name for p in tmp_path.iterdir()}
    assert not [name for name in left if name.startswith(".raybone-")]
    assert AUTH[1] not in "".join(p.read_text() for p in (tmp_path / "web").glob("*.*s*"))


@REAL
@pytest.mark.usefixtures("known")
def test_studies_are_asked_for_by_their_attributes(
    orthanc: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = pydicom.dcmread(sorted(cohort.rglob("*.dcm"))[0]).PatientID
    words = ["--folds", "2", "--key", str(tmp_path / "key")]
    source = f"dicomweb:{orthanc}/dicom-web?PatientID={patient}"
    assert main(["prepare", source, str(tmp_path / "one"), *words]) == 0
    assert len({s.patient_id for s in open_dataset(tmp_path / "one").scans}) == 1
    said = capsys.readouterr()
    assert patient not in said.err + said.out
    source = f"dicomweb:{orthanc}/dicom-web?PatientID=NOBODY"
    assert main(["prepare", source, str(tmp_path / "none"), *words]) == 2
    said = capsys.readouterr().err
    assert "but has none; widen the search" in said
    assert "NOBODY" not in said


@REAL
def test_without_its_password_it_is_one_line(
    orthanc: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", f"dicomweb:{orthanc}/dicom-web", str(tmp_path / "ds")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "answers 401; put its token into RAYBONE_DICOMWEB_TOKEN" in said
    assert not (tmp_path / "ds").exists()


@REAL
@pytest.mark.usefixtures("known")
def test_findings_are_stored_where_they_can_be_found(
    orthanc: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(tmp_path / "bundle", "unet", ["malignant"], width=4, depth=2)
    known = json.loads((bundle.path / "bundle.json").read_text())
    known["operating_point"] = {"threshold": 0.01}  # of a network that has learned nothing
    (bundle.path / "bundle.json").write_text(json.dumps(known))
    out, store = str(tmp_path / "found"), f"{orthanc}/dicom-web"
    scans = sorted(cohort.rglob("*.dcm"))[:2]
    words = ["predict", str(bundle.path), *map(str, scans), "--out", out, "--store", store]
    assert main(words) == 0
    written = sorted((tmp_path / "found").glob("*.dcm"))
    assert written
    assert f"{len(written)} DICOM objects are stored" in capsys.readouterr().out
    for file in written:
        uid = pydicom.dcmread(file).SOPInstanceUID
        found = requests.get(
            f"{orthanc}/dicom-web/instances", params={"SOPInstanceUID": uid}, auth=AUTH, timeout=60
        ).json()
        assert len(found) == 1


class Failing(BaseHTTPRequestHandler):
    """An archive of one study that answers as it is told."""

    codes: list[int] = []  # noqa: RUF012  # of the next answers; then 404
    bodies: list[bytes] = []  # noqa: RUF012  # of those with 200; then none found
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        code = self.codes.pop(0) if self.codes else 404
        if code == 0:  # the line is cut
            self.connection.close()
            return
        body = self.bodies.pop(0) if self.bodies else b"[]"
        body = body if code == 200 else b"no"
        self.send_response(code)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        code, kind, body = Failing.stored.pop(0)
        self.send_response(code)
        self.send_header("Location" if code in (301, 302) else "X-None", "https://login.example/x")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    stored: list[tuple[int, str, bytes]] = []  # noqa: RUF012  # answers to what is sent

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    Failing.codes.clear()
    Failing.bodies.clear()
    Failing.asked.clear()
    Failing.stored.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"dicomweb:http://127.0.0.1:{server.server_port}/dicom-web"
        server.shutdown()


def test_an_archive_that_is_away_is_asked_again(
    failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Failing.codes[:] = [500, 503, 0, 429, 200]
    assert main(["prepare", failing, str(tmp_path / "ds")]) == 2
    assert "has none; widen the search" in capsys.readouterr().err
    assert len(Failing.asked) == 5


def told(*uids: str, tag: str = "0020000D") -> bytes:
    """Studies or series as DICOM's JSON has them."""
    modality = {"00080060": {"vr": "CS", "Value": ["NM"]}}
    return json.dumps([{tag: {"vr": "UI", "Value": [uid]}, **modality} for uid in uids]).encode()


def test_an_archive_that_gives_less_than_it_is_asked_or_all_again_is_asked_to_its_end(
    failing: str, tmp_path: Path
) -> None:
    none = b"[]"  # series of a study
    pages = [told("1.1", "1.2"), told("1.2", "1.3"), told("1.3", "1.1")]
    Failing.bodies[:] = [pages[0], none, none, pages[1], none, pages[2]]
    Failing.codes[:] = [200] * 6
    assert main(["prepare", failing, str(tmp_path / "ds")]) == 2
    asked = [path.partition("?")[0].rpartition("/")[2] for path in Failing.asked]
    assert len(asked) == 6
    assert asked.count("series") == 3


@pytest.mark.parametrize("uid", ["../../x", "/tmp/x", "", "1.2/3", "a.b"])
def test_uids_become_no_other_paths(
    uid: str, failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Failing.bodies[:] = [told(uid)]
    Failing.codes[:] = [200] * 3
    assert main(["prepare", failing, str(tmp_path / "ds")]) == 2
    assert "must give UIDs of digits and dots" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == []


def test_one_that_stays_away_is_one_line(
    failing: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "PATIENCE", 0.0)
    Failing.codes[:] = [500] * 50
    assert main(["prepare", failing, str(tmp_path / "ds")]) == 1
    said = capsys.readouterr().err
    assert "answers 500 for 0 s; give the same command again" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("dicomweb:ftp://host/x", "must be an address of http or https"),
        ("dicomweb:http://me:secret@host/x", "without a name or password"),
        ("dicomweb:", "must be an address"),
    ],
)
def test_what_is_no_address_is_refused(
    url: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", url, str(tmp_path / "ds")]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "secret" not in said


def test_a_path_that_is_no_service_says_so(
    failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", failing, str(tmp_path / "ds")]) == 2
    assert "answers 404; check the path" in capsys.readouterr().err


REFUSED = json.dumps(
    {
        "00081198": {
            "vr": "SQ",
            "Value": [{"00081197": {"vr": "US", "Value": [272]}}],
        }
    }
).encode()
OTHER = json.dumps(
    {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]}}
).encode()
DICOM_JSON = "application/dicom+json"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((302, "text/html", b""), "points to https://login.example; give the address"),
        ((200, "text/html", b"<html>Sign in</html>"), "but answers text/html; check the address"),
        ((200, f"{DICOM_JSON}; charset=utf-8", REFUSED), "dcm (failure reason 272)"),
        ((200, DICOM_JSON, REFUSED), "must take 1 objects, but refuses 1, such as anterior.dcm"),
        ((409, DICOM_JSON, REFUSED), "anterior.dcm (failure reason none given, status 409)"),
        ((200, DICOM_JSON, OTHER), "anterior.dcm (failure reason none given)"),
    ],
)
def test_what_an_archive_did_not_take_is_not_said_to_be_stored(
    answer: tuple[int, str, bytes], why: str, failing: str, cohort: Path
) -> None:
    Failing.stored[:] = [answer]
    with pytest.raises(WrongInput) as refused:
        web.store_of(failing)([sorted(cohort.rglob("*.dcm"))[0]], lambda done, total: None)
    assert why in str(refused.value)
    assert len(Failing.asked) == 1


@pytest.mark.parametrize("kind", [DICOM_JSON, f"{DICOM_JSON}; charset=utf-8"])
def test_what_an_archive_names_or_is_silent_about_is_stored(
    kind: str, failing: str, cohort: Path
) -> None:
    file = sorted(cohort.rglob("*.dcm"))[0]
    uid = str(pydicom.dcmread(file).SOPInstanceUID)
    Failing.stored[:] = [(200, kind, OTHER.replace(b"1.2.3", uid.encode())), (200, kind, b"")]
    assert web.store_of(failing)([file, file], lambda done, total: None) == 2


def test_what_was_not_stored_is_by_the_same_command_and_nothing_is_predicted_again(
    failing: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(tmp_path / "bundle", "unet", ["malignant"], width=4, depth=2)
    known = json.loads((bundle.path / "bundle.json").read_text())
    known["operating_point"] = {"threshold": 0.01}
    (bundle.path / "bundle.json").write_text(json.dumps(known))
    scans, out = sorted(map(str, cohort.rglob("*.dcm")))[:2], tmp_path / "found"
    words = ["predict", str(bundle.path), *scans, "--out", str(out), "--store", failing]
    Failing.stored[:] = [(200, DICOM_JSON, REFUSED), *[(200, DICOM_JSON, b"")] * 9]
    assert main(words) == 2
    written = {file.name: file.read_bytes() for file in out.iterdir()}
    many = sum(name.endswith(".dcm") for name in written)
    assert len(Failing.asked) == many > 1
    assert f"must take {many} objects, but refuses 1, such as" in capsys.readouterr().err
    Failing.stored[:] = [(200, DICOM_JSON, b"")] * 9
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "was made by the same command; what is in it is stored" in said
    assert f"{many} DICOM objects are stored" in said
    assert {file.name: file.read_bytes() for file in out.iterdir()} == written
    assert main([*words, "--least", "0.5"]) == 2
    assert "must not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "token", "why"),
    [
        (b"<html>", "", "but answers something else (JSONDecodeError); check the address"),
        (b"{}", "", "must give UIDs of digits and dots"),
        (b"[]", "abc\r\n", "has none; widen the search"),
        (b"[]", "a\nbc", "cannot be asked (InvalidHeader)"),
    ],
)
def test_what_no_waiting_mends_is_said_at_once(
    body: bytes,
    token: str,
    why: str,
    failing: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token:
        monkeypatch.setenv("RAYBONE_DICOMWEB_TOKEN", token)
    Failing.codes[:], Failing.bodies[:] = [200] * 3, [body]
    assert main(["prepare", failing, str(tmp_path / "ds")]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert "abc" not in said
    assert len(Failing.asked) <= 1
