"""No scan becomes a negative by accident: annotations without a scan and scans without annotation
are counted first.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.dicom.frames import write_scan

SQUARE = {"label": "metastasis", "shape_type": "rectangle", "points": [[10, 20], [22, 28]]}


def counts_of(seed: int) -> np.ndarray:
    counts_HW = np.random.default_rng(seed).poisson(40, (64, 48)).astype(np.uint16)
    counts_HW[[0, -1]] = counts_HW[:, [0, -1]] = 0
    return counts_HW


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(counts_of(seed).astype(np.uint8)).save(path)


def labelme(path: Path, image: str, shapes: list[dict[str, Any]] | None = None) -> None:
    path.write_text(
        json.dumps(
            {
                "imagePath": image,
                "imageHeight": 64,
                "imageWidth": 48,
                "shapes": [SQUARE] if shapes is None else shapes,
            }
        )
    )


def prepared(source: Path, *more: str) -> int:
    return main(
        [
            "prepare",
            str(source),
            str(source.parent / "ds"),
            "--folds",
            "2",
            "--key",
            str(source.parent / "k"),
            *more,
        ]
    )


def lesions_by_flag(place: Path) -> list[tuple[tuple[str, ...], int]]:
    return sorted((s.flags, len(s.lesions)) for s in open_dataset(place).scans)


def test_scans_without_annotation_are_kept_apart_and_an_empty_list_is_a_negative(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    for seed in range(4):
        picture(source / f"{seed}.png", seed)
    labelme(source / "0.json", "0.png")
    labelme(source / "1.json", "1.png", [])
    labelme(
        source / "2.json", "2.png", [{**SQUARE, "points": [[500, 500], [510, 510]]}]
    )  # nothing of it is left
    assert prepared(source) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "annotations: 3 of 3 found their scan; left out: 1"
    assert told[1] == (
        "scans without annotation, where others have one: 2 (neither trained on nor scored; "
        "--unannotated negative takes them as scans without lesion)"
    )
    assert lesions_by_flag(tmp_path / "ds") == [
        ((), 0),
        ((), 1),
        (("unannotated",), 0),
        (("unannotated",), 0),
    ]
    dataset = open_dataset(tmp_path / "ds")
    assert dataset.meta["counts"]["unannotated"] == 2


def test_scans_without_annotation_count_as_negative_when_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        picture(tmp_path / "in" / f"{seed}.png", seed)
    labelme(tmp_path / "in" / "0.json", "0.png")
    assert prepared(tmp_path / "in", "--unannotated", "negative") == 0
    assert "2 (taken as scans without lesion)" in capsys.readouterr().out
    assert lesions_by_flag(tmp_path / "ds") == [
        ((), 1),
        (("taken-as-negative",), 0),
        (("taken-as-negative",), 0),
    ]
    assert prepared(tmp_path / "in", "--unannotated", "maybe") == 2


def test_an_ambiguous_annotation_is_refused_with_both_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    picture(source / "0001.png", 1)
    picture(source / "0001.jpg", 2)
    picture(source / "0002.png", 3)
    labelme(source / "0001.json", "0001.tif")
    assert prepared(source) == 2
    assert "fits 2 scans alike; --show-paths names them" in capsys.readouterr().err
    assert prepared(source, "--show-paths") == 2
    assert "0001.json: fits 0001.jpg and 0001.png alike; rename one" in capsys.readouterr().err
    labelme(source / "0001.json", "0001.png")
    assert prepared(source) == 0
    assert lesions_by_flag(tmp_path / "ds") == [
        ((), 1),
        (("unannotated",), 0),
        (("unannotated",), 0),
    ]


def test_a_coco_file_that_names_nothing_here_is_refused_and_its_first_name_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    for seed in range(3):
        picture(source / f"{seed}.png", seed)
    images = [{"id": n, "file_name": f"scan-{n}.png", "height": 64, "width": 48} for n in range(3)]
    items = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(3)]
    (source / "export.json").write_text(
        json.dumps({"images": images, "annotations": items, "categories": [{"id": 1, "name": "m"}]})
    )
    assert prepared(source, "--show-paths") == 2
    assert (
        "export.json is a COCO file whose file names lead nowhere here: none of its 3 annotations "
        "finds a scan, the first for scan-0.png; correct it"
    ) in capsys.readouterr().err
    assert not (tmp_path / "ds").exists()
    assert prepared(source, "--allow-unmatched", "--layout", "labelme") == 0
    assert capsys.readouterr().out.startswith(
        "annotations: 0 of 3 found their scan; files that no scan uses: 1"
    )
    assert lesions_by_flag(tmp_path / "ds") == [(("unannotated",), 0)] * 3


def test_a_dicom_file_and_its_preview_are_one_scan(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for seed in range(2):
        write_scan(
            source / f"{seed}.dcm",
            counts_of(seed),
            patient=str(seed),
            view="anterior",
            pixel_mm=2,
            uid=str(seed),
        )
        picture(source / f"{seed}.png", seed)
        labelme(source / f"{seed}.json", f"{seed}.png")
    assert prepared(source) == 0
    dataset = open_dataset(tmp_path / "ds")
    assert [(len(s.lesions), s.pixel_mm) for s in dataset.scans] == [(1, 2.0)] * 2


def test_equal_pixels_with_different_annotations_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    for name, seed in (("a", 1), ("copy", 1), ("b", 2)):
        picture(source / f"{name}.png", seed)
        labelme(source / f"{name}.json", f"{name}.png", [] if name == "copy" else None)
    assert prepared(source, "--show-paths") == 0
    told = capsys.readouterr().out
    assert "2 x scans of the same pixels whose annotations differ: one of them is wrong" in told
    assert f"{source}/copy.png: scans of the same pixels" in told


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "euc_kr", "utf-8"])
def test_names_in_an_archive_of_another_system_still_find_their_scan(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such archives do not say in which encoding their names are; some have backslashes."""
    words = {
        "gbk": "\u8f6c\u79fb",
        "shift_jis": "\u8ee2\u79fb",
        "euc_kr": "\uc804\uc774",
        "utf-8": "m\u00e9tastase",
    }
    monkeypatch.setattr(
        zipfile.ZipInfo,
        "_encodeFilenameFlags",
        lambda self: (self.filename.replace("/", "\\").encode(encoding), 0),
    )
    names = [f"{words[encoding]}{n}.png" for n in range(3)]
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for seed, name in enumerate(names):
            picture(tmp_path / "one.png", seed)
            archive.write(tmp_path / "one.png", f"images/{name}")
        archive.writestr(
            "labels.json",
            json.dumps(
                {
                    "images": [
                        {"id": n, "file_name": name, "height": 64, "width": 48}
                        for n, name in enumerate(names)
                    ],
                    "annotations": [
                        {"image_id": n, "category_id": 1, "bbox": [1, 1, n + 5, 9]}
                        for n in range(3)
                    ],
                    "categories": [{"id": 1, "name": "nidus"}],
                },
                ensure_ascii=False,
            ),
        )
    assert prepared(tmp_path / "in.zip") == 0
    assert lesions_by_flag(tmp_path / "ds") == [((), 1)] * 3


def test_values_of_masks_are_named_by_categories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        picture(tmp_path / "in" / "images" / f"{seed}.png", seed)
        mask_HW = np.zeros((64, 48), np.uint8)
        mask_HW[5:9, 5:9], mask_HW[20:24, 5:9] = 1, 2
        (tmp_path / "in" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask_HW).save(tmp_path / "in" / "masks" / f"{seed}.png")
    assert prepared(tmp_path / "in") == 2
    assert (
        "has a mask of the values 0, 1, 2, and nothing says which are lesion"
        in capsys.readouterr().err
    )
    assert prepared(tmp_path / "in", "--categories", "1=malignant", "2=benign") == 0
    assert [[le.category for le in s.lesions] for s in open_dataset(tmp_path / "ds").scans] == [
        ["malignant", "benign"]
    ] * 2


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interruption_ends_prepare_at_once_and_leaves_nothing(
    way: signal.Signals, tmp_path: Path
) -> None:
    """The signal goes to all processes of the group, as a terminal's does.

    SIGKILL is for one alone: its helpers write for some moments more, and the next verb tidies
    after them.
    """
    source = tmp_path / "in"
    source.mkdir()
    big_HW = np.random.default_rng(0).poisson(9, (1024, 1024)).astype(np.uint16)
    write_scan(source / "0.dcm", big_HW, patient="0", view="anterior", pixel_mm=2, uid="0")
    for n in range(1, 600):
        os.link(source / "0.dcm", source / f"{n}.dcm")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from "
        "raybone.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "prepare",
            str(source),
            str(tmp_path / "ds"),
            "--key",
            str(tmp_path / "k"),
        ],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob(".ds.*.partial/raw/pixels/*.npy")):
        assert child.poll() is None
        time.sleep(0.05)
    if way == signal.SIGKILL:
        child.kill()
    else:
        os.killpg(child.pid, way)
    _, err = child.communicate(timeout=60)
    assert child.returncode == (-way if way == signal.SIGKILL else 1)
    assert "Traceback" not in err
    if way == signal.SIGKILL:
        assert main(["inspect", str(tmp_path / "ds")]) == 2
    elif way != signal.SIGTERM:
        assert err.splitlines()[-1] == "raybone: interrupted; nothing is left of it"
    assert {p.name for p in tmp_path.iterdir()} == {"in", "k"}
