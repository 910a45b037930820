"""Two thousand damaged inputs: none ends in a traceback, a signal, a hang or gigabytes, and each is
accounted for.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import random
import select
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import yaml
from pretend import pretend

from raybone.cli import main
from raybone.data.annotations import lesion_mask
from raybone.data.dataset import Dataset, open_dataset
from raybone.hpo.journal import Journal
from raybone.storage import Folder

MEMORY = 3 << 29  # bytes beyond what the imports took, of any process
CHARTS = 1 << 33  # where reports are drawn: 5.3 GB of addresses were the peak of one
PATIENCE = 120.0  # seconds
BATCH = 20
# What a field may hold that nobody meant it to.
ODD = (
    None,
    True,
    -1,
    0,
    7,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**400,
    2**63,
    "",
    "x",
    "\x1b[2J",
    "\x00",
    "../../../etc/passwd",
    "=cmd()",
    "é" * 300,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0] * 1000,
)
CHILD = """
import json, resource, sys
import torchvision, raybone.deploy.predict, raybone.run.preview, raybone.data.ingest.prepare, raybone.results.leaderboard, raybone.results.report
from raybone.cli import main
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + {memory},) * 2)
for line in sys.stdin:
    told = sys.stdout
    sys.stdout = sys.stderr
    code = main(json.loads(line))
    sys.stdout = told
    print(code, flush=True)
"""


class Verbs:
    """A process that gives verbs to the command line one after the other; it is begun anew when one
    ends it.
    """

    def __init__(self, place: Path, memory: int = MEMORY) -> None:
        self.log, self.memory = place / "told.txt", memory
        self.ends = Counter[str]()
        self._begin()

    def _begin(self) -> None:
        self.file = self.log.open("w+")
        self.child = subprocess.Popen(
            [
                sys.executable,
                "-X",
                "faulthandler",
                "-c",
                CHILD.replace("{memory}", str(self.memory)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.file,
            text=True,
        )

    def __call__(self, *words: object) -> str:
        """How a verb ended: its exit code, or what it must not do."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        before = self.log.stat().st_size
        self.child.stdin.write(json.dumps([str(w) for w in words]) + "\n")
        self.child.stdin.flush()
        answered = select.select([self.child.stdout], [], [], PATIENCE)[0]
        end = self.child.stdout.readline().strip() if answered else "hangs"
        told = self.log.read_text(errors="replace")[before:]
        if "Traceback" in told or end not in ("0", "1", "2"):
            self.close()
            end = f"{end or f'ends with {self.child.returncode}'}: {told[-600:]}"
            self._begin()
        self.ends[end if len(end) < 9 else "bad"] += 1
        return end

    def close(self) -> None:
        """End the process."""
        self.child.kill() if self.child.poll() is None and self.child.stdin is None else self.child.stdin.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.file.close()


def torn(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, put in, doubled or cut short, in one to six places."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(max(1, len(found))), rng.choice((1, 2, 4, 30, 300))
        kind = rng.randrange(6)
        if kind == 0:
            found[at : at + length] = rng.randbytes(length)
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = rng.choice(
                (b"\xff" * length, b"\0" * length, b"9" * length, b"[" * length)
            )
        elif kind == 3:
            found[at:at] = found[max(0, at - length) : at]
        elif kind == 4 and rng.random() < 0.3:
            del found[at:]
        else:
            head = rng.randrange(min(600, max(1, len(found))))  # where headers are
            found[head : head + 2] = rng.choice((b"\xff\xff", b"\0\0", b"\x01\0", b"99"))
    return bytes(found)


def spoiled(value: Any, rng: random.Random) -> Any:
    """A copy of a document with something odd in one to three of its places."""
    document = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        place: Any = document
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.25:
                if rng.random() < 0.15:
                    del place[key]
                else:
                    place[key] = rng.choice(ODD)
                break
            place = place[key]
    return document


@pytest.fixture(scope="module")
def parts(cohort: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is damaged: scans with their annotations in every format, a study, a bundle, a
    journal.
    """
    place = tmp_path_factory.mktemp("parts")
    opened = open_dataset(dataset)
    study = {
        "name": "fuzz",
        "dataset": str(dataset),
        "model": "unet",
        "epochs": 1,
        "metric": "dice",
        "fixed": {"batch": 4, "nbs": 4, "width": 4, "depth": 1, "imgsz": 64},
        "space": {
            "lr0": {"log_uniform": [1e-4, 1e-1]},
            "optimizer": {"choice": ["AdamW", "SGD"]},
            "momentum": {"uniform": [0.6, 0.95], "when": {"optimizer": "SGD"}},
        },
        "search": {"trials": 1, "sampler": "random", "scheduler": "full", "reject": ["lr0 > 0.05"]},
        "resources": {"cpus": 1},
        "limits": {"hours": 1},
        "keep": 1,
    }
    (place / "study.yaml").write_text(yaml.safe_dump(study))
    assert (
        main(["search", str(place / "study.yaml"), "--out", str(place / "study"), "--local"]) == 0
    )
    assert main(["refit", str(place / "study"), "--out", str(place / "bundle")]) == 0
    pretend(place / "pretended", dataset)
    return {
        "place": place,
        "study": study,
        "dataset": opened,
        "dicom": sorted(cohort.rglob("*.dcm")),
    }


def picture(dataset: Dataset, number: int) -> bytes:
    scan = dataset.scans[number % len(dataset.scans)]
    return cv2.imencode(".png", np.minimum(dataset.counts(scan), 255).astype(np.uint8))[1].tobytes()


def mask(dataset: Dataset, number: int) -> np.ndarray:
    scan = dataset.scans[number % len(dataset.scans)]
    masks = [lesion_mask(le, scan.height, scan.width) for le in scan.lesions]
    return np.any([np.zeros((scan.height, scan.width), bool), *masks], axis=0).astype(np.uint8)


def boxes(dataset: Dataset, number: int) -> list[tuple[float, ...]]:
    return [le.box_xyxy for le in dataset.scans[number % len(dataset.scans)].lesions]


def labelme(dataset: Dataset, number: int, rng: random.Random) -> bytes:
    corners = [
        [[x1, y1], [x2, y1], [x2, y2], [x1, y2]] for x1, y1, x2, y2 in boxes(dataset, number)
    ]
    shapes = [
        {
            "label": "malignant",
            "points": points,
            "shape_type": "polygon",
            "group_id": None,
            "flags": {},
        }
        for points in corners
    ]
    good = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{number}.png",
        "imageData": None,
        "imageHeight": 256,
        "imageWidth": 64,
    }
    return (
        json.dumps(spoiled(good, rng)).encode()
        if rng.random() < 0.7
        else torn(json.dumps(good).encode(), rng)
    )


def voc(dataset: Dataset, number: int, rng: random.Random) -> bytes:
    objects = "".join(
        f"<object><name>malignant</name><bndbox><xmin>{a:.0f}</xmin><ymin>{b:.0f}</ymin>"
        f"<xmax>{c:.0f}</xmax><ymax>{d:.0f}</ymax></bndbox></object>"
        for a, b, c, d in boxes(dataset, number)
    )
    return torn(
        (
            f"<annotation><filename>{number}.png</filename><size><width>64</width><height>256</height>"
            f"<depth>1</depth></size>{objects}</annotation>"
        ).encode(),
        rng,
    )


def nifti(dataset: Dataset, number: int, rng: random.Random) -> bytes:
    image = nibabel.Nifti1Image(mask(dataset, number).T[..., None], np.diag([2.0, 2.0, 1.0, 1.0]))
    content = torn(image.to_bytes(), rng)
    return (
        gzip.compress(content) if rng.random() < 0.7 else torn(gzip.compress(image.to_bytes()), rng)
    )


def painted(dataset: Dataset, number: int, rng: random.Random) -> bytes:
    return torn(cv2.imencode(".png", mask(dataset, number) * 255)[1].tobytes(), rng)


def coco(dataset: Dataset, rng: random.Random) -> bytes:
    names = {s.scan_id: f"{n}.png" for n, s in enumerate(dataset.scans[:4])}
    good = json.loads((dataset.path / "annotations.json").read_text())
    good["images"] = [
        {**i, "file_name": names[i["file_name"]]} for i in good["images"] if i["file_name"] in names
    ]
    kept = {i["id"] for i in good["images"]}
    good["annotations"] = [a for a in good["annotations"] if a["image_id"] in kept]
    return (
        json.dumps(spoiled(good, rng)).encode()
        if rng.random() < 0.7
        else torn(json.dumps(good).encode(), rng)
    )


def folders(parts: dict[str, Any], place: Path) -> Iterator[tuple[str, Path, int]]:
    """Sources of prepare with their kind, and how many damaged inputs are in them."""
    dataset, dicom = parts["dataset"], parts["dicom"]
    kinds: dict[str, tuple[str, Callable[..., bytes]]] = {
        "labelme": (".json", labelme),
        "voc": (".xml", voc),
        "nifti": (".nii.gz", nifti),
        "mask": ("_mask.png", painted),
    }
    for seed in range(20):
        rng, source = random.Random(seed), place / f"dicom{seed}"
        source.mkdir()
        for number in range(BATCH):
            (source / f"{number}.dcm").write_bytes(
                torn(dicom[number % len(dicom)].read_bytes(), rng)
            )
        yield "dicom", source, BATCH
        for kind, (suffix, made) in kinds.items():
            source = place / f"{kind}{seed}"
            source.mkdir()
            for number in range(BATCH // 2):
                (source / f"{number}.png").write_bytes(picture(dataset, number))
                (source / f"{number}{suffix}").write_bytes(made(dataset, number, rng))
            yield kind, source, BATCH // 2
        source = place / f"zip{seed}"
        source.mkdir()
        for number in range(5):
            with zipfile.ZipFile(source / f"{number}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for scan in dicom[:2]:
                    archive.write(scan, f"{number}/{scan.name}")
            path = source / f"{number}.zip"
            path.write_bytes(torn(path.read_bytes(), rng))
        yield "zip", source, 5
    for seed in range(150):
        rng, source = random.Random(seed), place / f"coco{seed}"
        source.mkdir()
        for number in range(4):
            (source / f"{number}.png").write_bytes(picture(dataset, number))
        (source / "annotations.json").write_bytes(coco(dataset, rng))
        yield "coco", source, 1


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_damaged_scans_and_annotations_are_taken_or_told(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    verbs, bad, tried = Verbs(tmp_path), list[str](), Counter[str]()
    for kind, source, many in folders(parts, tmp_path):
        tried[kind] += many
        out, key = tmp_path / "out" / "ds", tmp_path / "key"
        rest = ["--allow-unmatched"] if tried[kind] % (2 * many) else []
        end = verbs("prepare", source, out, "--folds", "2", "--key", key, *rest)
        if end not in ("0", "2"):
            bad.append(f"{source.name}: {end}")
        if end == "0":
            (told,) = tmp_path.glob("key.*.sources.csv")
            with told.open(newline="") as file:
                known = {Path(row["path"]).name for row in csv.DictReader(file)}
            scans = {
                p.name
                for p in source.iterdir()
                if p.suffix in (".dcm", ".zip") or (p.suffix == ".png" and "mask" not in p.name)
            }
            # Of an archive that was taken, its members are listed.
            lost = {name for name in scans - known if not name.endswith(".zip")}
            bad += [f"{source.name}: {name} is neither taken nor told" for name in sorted(lost)]
            told.unlink()
        if (
            left := [p.name for p in out.parent.iterdir() if p != out]
            if out.parent.exists()
            else []
        ):
            bad.append(f"{source.name}: left {left}")
        shutil.rmtree(out.parent, ignore_errors=True)
        if not bad or not bad[-1].startswith(f"{source.name}:"):
            shutil.rmtree(source)
    verbs.close()
    print(
        f"\nprepare: {sum(tried.values())} damaged inputs, {dict(tried)}; ends {dict(verbs.ends)}"
    )
    assert not bad, "\n".join(bad)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_damaged_studies_journals_and_bundles_are_told(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    verbs, bad, place = Verbs(tmp_path, CHARTS), list[str](), parts["place"]
    events = list(Journal(Folder(place / "pretended")).events())
    bundle = json.loads((place / "bundle" / "bundle.json").read_text())
    (member,) = {m["file"] for m in bundle["members"]} & {"fold0.safetensors"}

    def tried(seed: int, *words: object) -> None:
        end = verbs(*words)
        if end not in ("0", "1", "2"):
            bad.append(f"{words[0]} {seed}: {end}")
            print(bad[-1], flush=True)

    for seed in range(300):
        rng, path = random.Random(seed), tmp_path / "s.yaml"
        good = yaml.safe_dump(parts["study"])
        path.write_bytes(
            yaml.safe_dump(spoiled(parts["study"], rng)).encode()
            if rng.random() < 0.6
            else torn(good.encode(), rng)
        )
        tried(seed, "preview", path, "--epoch-seconds", "1")
    for seed in range(150):
        rng, study = random.Random(seed), tmp_path / "st"
        shutil.rmtree(study, ignore_errors=True)
        shutil.copytree(place / "pretended", study)
        if seed % 3 == 0:
            shutil.rmtree(study / "journal")
            (study / "leaderboard.csv").unlink(missing_ok=True)
            journal, odd = Journal(Folder(study)), rng.randrange(len(events))
            for number, event in enumerate(events):
                fields = spoiled(event, rng) if number == odd else event
                with contextlib.suppress(ValueError):  # what JSON cannot hold
                    journal.append(
                        **{
                            "event": "epoch",
                            **{k: v for k, v in fields.items() if k.isidentifier()},
                        }
                    )
        else:
            files = sorted(p for p in study.rglob("*") if p.is_file() and p.suffix != ".csv")
            file = rng.choice(files)
            file.write_bytes(torn(file.read_bytes(), rng))
        for verb in ("leaderboard", "logs", "report"):
            tried(seed, verb, study)
    for seed in range(150):
        rng, copy = random.Random(seed), tmp_path / "b"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place / "bundle", copy)
        if seed % 2:
            (copy / "bundle.json").write_text(json.dumps(spoiled(bundle, rng)))
        else:
            file = copy / rng.choice((member, "bundle.json"))
            file.write_bytes(torn(file.read_bytes(), rng))
        tried(seed, "predict", copy, parts["dicom"][0], "--out", tmp_path / "found")
        shutil.rmtree(tmp_path / "found", ignore_errors=True)
    verbs.close()
    print(f"\nstudies 300, journals 150, bundles 150; ends {dict(verbs.ends)}")
    assert not bad, "\n".join(bad)
