"""Memory of ``prepare dicomweb:URL`` for 1,000 and for 10,000 instances, beside dicomweb-client
alone, which keeps a series: ``python benchmarks/dicomweb.py`` (a quarter of an hour).

The archive is an Orthanc of this machine (``apt-get install orthanc orthanc-dicomweb``) with scans
of 512x128, in series of one or in two long ones. Writes results/dicomweb.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import requests
from machine import keep

from raybone.data.ingest.dicom.frames import write_scan

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SHAPE = (512, 128)
PREPARE = (
    "import sys; from raybone.cli import main; "
    "raise SystemExit(main(['prepare', *sys.argv[1:], '--folds', '2']))"
)
CLIENT = """
import sys
from dicomweb_client.api import DICOMwebClient
client = DICOMwebClient(sys.argv[1])
kept = []
for one in client.search_for_series():
    study, series = (one[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
    kept = client.retrieve_series(study, series, media_types=(("application/dicom", "*"),))
"""


def main() -> None:
    """Measure and keep."""
    found = {}
    for instances, each in ((1000, 1), (10000, 1), (1000, 500), (10000, 5000)):
        with tempfile.TemporaryDirectory() as folder, archive(Path(folder)) as url:
            fill(url, instances, each, Path(folder) / "scan.dcm")
            root, out = f"{url}/dicom-web", str(Path(folder) / "ds")
            ours = peak([PREPARE, f"dicomweb:{root}", out], Path(folder))
            counts = json.loads((Path(out) / "dataset.json").read_text())["counts"]
            row = {"scans": counts["scans"], "raybone prepare": ours}
            if each > 1:
                row["dicomweb-client"] = peak([CLIENT, root], Path(folder))
        found[f"{instances} in series of {each}"] = row
        print(f"{instances} in series of {each}", row, flush=True)
    keep("dicomweb", {"shape": SHAPE, **found})


def fill(url: str, instances: int, each: int, file: Path) -> None:
    """Store that many scans, so many of a series, two series of a patient where they are short."""
    rng = np.random.default_rng(0)
    for number in range(instances):
        series = number // each
        patient, view = (series // 2, series % 2) if each == 1 else (series, 0)
        write_scan(
            file,
            rng.poisson(20, SHAPE).astype(np.uint16),
            patient=str(patient),
            view=("anterior", "posterior")[view],
            pixel_mm=2,
            uid=str(number),
        )
        requests.post(f"{url}/instances", data=file.read_bytes(), timeout=60).raise_for_status()


def peak(code_and_words: list[str], home: Path) -> dict[str, float]:
    """The most resident memory of a process, MB, and of it with those that it started; and its
    seconds.
    """
    code, *words = code_and_words
    began = time.monotonic()
    environment = {**os.environ, "HOME": str(home)}
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=log, stderr=log, env=environment
        )
        first, family = psutil.Process(process.pid), []
        alone = 0
        while process.poll() is None:
            sizes = [0]
            for one in [first, *first.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    sizes.append(one.memory_info().rss)
            alone = max(alone, sizes[1] if len(sizes) > 1 else 0)
            family.append(sum(sizes))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit((home / "log.txt").read_text())
    return {
        "process_mb": round(alone / 1e6),
        "all_processes_mb": round(max(family) / 1e6),
        "seconds": round(time.monotonic() - began, 1),
    }


@contextlib.contextmanager
def archive(folder: Path) -> Iterator[str]:
    """An empty Orthanc for the time of the block; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "orthanc.txt").open("w") as log:
        process = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(150):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{url}/system", timeout=5)
                break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
