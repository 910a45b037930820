"""DICOMweb (PS3.18): scans fetched from an archive into a folder, findings stored in one.

The credentials are in the environment alone: RAYBONE_DICOMWEB_TOKEN (a bearer token), or
RAYBONE_DICOMWEB_USER and RAYBONE_DICOMWEB_PASSWORD.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from raybone.data.ingest.dicom.archive import SCHEME
from raybone.errors import MachineFault, WrongInput

ANNOTATIONS = ("SEG", "RTSTRUCT")  # modalities that go with any scan
PAGE = 200  # studies of an answer
PATIENCE = 120.0  # seconds that an archive may be away
TIMEOUT = 60.0  # seconds for each part of an answer
AS_STORED = (("application/dicom", "*"),)
REFERENCED = "ReferencedSOPSequence"
NO_SERVICE = "must be the root of a DICOMweb service"
# No waiting mends these.
UNSENT = (
    requests.exceptions.InvalidHeader,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidProxyURL,
    requests.exceptions.SSLError,
)
UID = re.compile(r"[0-9][0-9.]{0,63}")
Progress = Callable[[int, int], None]
Result = TypeVar("Result")


@contextlib.contextmanager
def fetched(source: str, modality: str | None, beside: Path, progress: Progress) -> Iterator[Path]:
    """A private folder with the instances of an archive, one file each, for the time of the block.

    Instances stream to the disk: none is kept in memory.

    Args:
        source: ``dicomweb:URL``, with attributes of studies to search for after a ``?``, such as
            ``?StudyDate=20200101-20201231``.
        modality: of the series that are fetched, beside segmentations and structure sets; None
            takes all.
        beside: the folder is made next to this path, as the scans are as confidential.
    Raises:
        WrongInput: it is no address, the archive refuses us, or has no such series.
        MachineFault: the archive does not answer, or breaks off, for two minutes.
    """
    archive = _Archive(source.removeprefix(SCHEME))
    wanted = {modality, *ANNOTATIONS} if modality else set[str]()
    series = [one for study in archive.studies() for one in archive.series(study, wanted)]
    if not series:
        raise WrongInput(
            f"{archive.name}: must have series of modality {modality or 'any'} in the studies that "
            "are asked for, but has none; widen the search or --modality"
        )
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raybone-", dir=beside.parent) as place:
        for number, (study_uid, series_uid) in enumerate(series, 1):
            archive.fetch(study_uid, series_uid, Path(place))
            progress(number, len(series))
        yield Path(place)


def store_of(url: str) -> Callable[[Sequence[Path], Progress], int]:
    """What stores DICOM files in an archive (STOW-RS), and returns their number. One that the
    archive refuses does not keep it from the others.

    Raises:
        WrongInput: the archive refuses us or some of them.
        MachineFault: it does not answer for two minutes.
    """
    archive = _Archive(url.removeprefix(SCHEME), "--store URL")

    def store(files: Sequence[Path], progress: Progress) -> int:
        refused = list[str]()
        for number, file in enumerate(files, 1):
            if reason := archive.store(file):
                refused.append(f"{file.name} (failure reason {reason})")
            progress(number, len(files))
        if refused:
            raise WrongInput(
                f"{archive.name}: must take {len(files)} objects, but refuses {len(refused)}, such "
                f"as {refused[0]}; ask its administrator, then give the same command again"
            )
        return len(files)

    return store


class _Archive:
    """An archive, asked again while it is away."""

    def __init__(self, url: str, given: str = f"{SCHEME}URL") -> None:
        try:
            parts = urlsplit(url)
            sound = parts.port != 0 and parts.scheme in ("http", "https") and parts.hostname
        except ValueError:
            sound = False
        if not sound or "@" in parts.netloc:
            raise WrongInput(
                f"{given}: must be an address of http or https without a name or password, "
                "which go into RAYBONE_DICOMWEB_TOKEN, or _USER and _PASSWORD; change it"
            )
        self.asked = dict(parse_qsl(parts.query))
        # Attributes of studies may name patients
        self.name = f"{SCHEME}{parts.scheme}://{parts.netloc}{parts.path}"
        session, known = requests.Session(), os.environ
        # What was read from a file ends with its line
        if token := known.get("RAYBONE_DICOMWEB_TOKEN", "").strip():
            session.headers["Authorization"] = f"Bearer {token}"
        elif user := known.get("RAYBONE_DICOMWEB_USER", "").strip():
            session.auth = user, known.get("RAYBONE_DICOMWEB_PASSWORD", "").strip("\r\n")
        session.hooks["response"].append(self._check)
        base = parts._replace(query="", fragment="").geturl().rstrip("/")
        self.client = DICOMwebClient(base, session=session, timeout=TIMEOUT)
        self.client.set_http_retry_params(retry=False)
        self._last = 0.0  # when something came

    def _check(self, answer: requests.Response, **_: Any) -> None:
        """Raise WrongInput for a redirect, which would turn a POST into a GET, and for a page where
        DICOM should be, as that of a login.
        """
        if answer.is_redirect:
            place = urlsplit(answer.headers["location"])
            raise WrongInput(
                f"{self.name}: must be the service itself, but answers {answer.status_code} and "
                f"points to {f'{place.scheme}://' * bool(place.scheme)}{place.netloc or 'a path'}; "
                "give the address that it has, or log in by the environment"
            )
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        page = kind.startswith("text/") and kind != "text/xml"
        if answer.ok and (page or "html" in kind):
            raise WrongInput(f"{self.name}: {NO_SERVICE}, but answers {kind}; check the address")
        if answer.request.method == "POST":
            answer.headers["Content-Type"] = kind  # the client knows it without a charset alone

    def studies(self) -> Iterator[str]:
        """UIDs of the studies that are asked for."""
        seen = dict[str, None]()
        while True:  # a server may give fewer than it is asked for, or begin where it likes
            asked = {"limit": PAGE, "offset": len(seen), "search_filters": self.asked}
            page = self._patiently(partial(self.client.search_for_studies, **asked))
            new = [uid for study in page if (uid := self._uid(study, "0020000D")) not in seen]
            if not new:
                return
            seen |= dict.fromkeys(new)
            yield from new

    def series(self, study: str, wanted: set[str]) -> Iterator[tuple[str, str]]:
        """A study's series of these modalities, of all where there are none."""
        for one in self._patiently(lambda: self.client.search_for_series(study)):
            if not wanted or _text(one, "00080060") in wanted:
                yield study, self._uid(one, "0020000E")

    def _uid(self, found: dict[str, Any], tag: str) -> str:
        return self._checked(_text(found, tag))

    def _checked(self, uid: str) -> str:
        """A UID, which becomes the name of a file."""
        if not UID.fullmatch(uid):
            raise WrongInput(
                f"{self.name}: must give UIDs of digits and dots, got {uid[:80]!r}; ask its "
                "administrator"
            )
        return uid

    def fetch(self, study: str, series: str, place: Path) -> None:
        """Write the instances of a series; those that are there after a break are kept."""
        folder = place / study / series
        folder.mkdir(parents=True, exist_ok=True)

        def every() -> None:
            instances = self.client.iter_series(study, series, media_types=AS_STORED)
            for dataset in instances:
                file = folder / f"{self._checked(str(dataset.get('SOPInstanceUID', '')))}.dcm"
                if not file.exists():
                    half = file.with_suffix(".half")
                    dataset.save_as(half, enforce_file_format=True)
                    half.rename(file)
                    self._last = time.monotonic()

        self._patiently(every)

    def store(self, file: Path) -> str:
        """Store one file; returns why the archive refuses it, empty where it does not."""
        dataset = pydicom.dcmread(file)

        def sent() -> Dataset | None:
            try:
                return self.client.store_instances([dataset])
            except requests.HTTPError as error:
                # All that was sent is refused, which is this one (PS3.18 10.5.3)
                if error.response is not None and error.response.status_code == 409:
                    return None
                raise

        answer = self._patiently(sent)
        if answer is None:
            return "none given, status 409"
        taken = [item.get("ReferencedSOPInstanceUID") for item in answer.get(REFERENCED, ())]
        failed = answer.get("FailedSOPSequence")
        if failed:
            return str(failed[0].get("FailureReason", "unknown"))
        return "none given" if taken and dataset.SOPInstanceUID not in taken else ""

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        """Ask, and again at growing intervals while the archive is away."""
        pause, first = 1.0, 0.0  # when the first of these failures was
        while True:
            try:
                return ask()
            except WrongInput:
                raise
            except requests.HTTPError as error:
                code = error.response.status_code if error.response is not None else 0
                if 400 <= code < 500 and code not in (408, 429):
                    raise WrongInput(f"{self.name}: {_refusal(code)}") from None
                why = f"answers {code}"
            except UNSENT as error:
                raise WrongInput(
                    f"{self.name}: cannot be asked ({type(error).__name__}); check the address, "
                    "proxy and token, and REQUESTS_CA_BUNDLE for a certificate of one's own"
                ) from None
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise WrongInput(
                    f"{self.name}: {NO_SERVICE}, but answers something else "
                    f"({type(error).__name__}); check the address"
                ) from None
            except (requests.RequestException, InvalidDicomError, EOFError) as error:
                why = type(error).__name__
            now = time.monotonic()
            first = now if first < self._last or not first else first
            if now - first >= PATIENCE:
                raise MachineFault(
                    f"{self.name}: must answer, but {why} for {PATIENCE:.0f} s; give the "
                    "same command again"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def _refusal(code: int) -> str:
    if code in (401, 403):
        return (
            f"must let us in, but answers {code}; put its token into RAYBONE_DICOMWEB_TOKEN, or "
            "name and password into RAYBONE_DICOMWEB_USER and RAYBONE_DICOMWEB_PASSWORD"
        )
    return f"{NO_SERVICE}, but answers {code}; check the path"


def _text(found: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM's JSON, empty where there is none."""
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])
