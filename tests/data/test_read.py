"""The stream of scans that ``prepare`` and ``predict`` are built on."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from raybone.data.ingest.options import ReadOptions
from raybone.data.ingest.read import Reading, read
from raybone.errors import WrongInput
from raybone.phantom.phantom import phantom

SECRET = b"a key of this test"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom patients as PNG with LabelMe files, and a note that is no scan."""
    folder = phantom(tmp_path_factory.mktemp("read") / "scans", 2, 5, "labelme", 128)
    (folder / "note.txt").write_text("no scan")
    return folder


def reading_of(
    sources: Path | list[Path], folder: Path, secret: bytes | None = SECRET, **options: object
) -> Reading:
    folder.mkdir()
    return read(sources, folder, ReadOptions(**options), secret)  # type: ignore[arg-type]


def test_scans_come_with_their_counts_and_origins_and_what_is_none_with_its_reason(
    source: Path, tmp_path: Path
) -> None:
    reading = reading_of(source, tmp_path / "work")
    paths = set()
    for scan, counts_HW in reading:
        assert isinstance(counts_HW, np.memmap)  # which takes no memory of its own
        (origin,) = reading.origins[scan.scan_id]
        paths.add(reading.path_of(origin.name))
        picture_HW = cv2.imread(reading.path_of(origin.name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(counts_HW, picture_HW)
        assert (origin.frame, origin.height, origin.width) == (0, *counts_HW.shape)
        assert (origin.y, origin.x) == (0, 0)
        assert "PHANTOM" not in repr(scan)
    assert paths == {str(p) for p in source.glob("*.png")}
    ((path, reason),) = reading.rejected()
    assert path == str(source / "note.txt")
    assert reason.startswith("is not an image")


def test_without_a_key_pseudonyms_hold_for_one_reading(source: Path, tmp_path: Path) -> None:
    known, again, first, second = (
        {scan.patient_id for scan, _ in reading_of(source, tmp_path / name, secret)}
        for name, secret in (("a", SECRET), ("b", SECRET), ("c", None), ("d", None))
    )
    assert known == again
    assert len(first) == len(second) == 2
    assert not first & second
    assert not (first | second) & known


def test_several_sources_are_read_together_and_called_as_they_were_given(
    source: Path, tmp_path: Path
) -> None:
    image = source / "PHANTOM-0001_anterior.png"
    reading = reading_of([image, source, source / "note.txt"], tmp_path / "work", layout="any")
    origins = [o for many in reading.origins.values() for o in many]
    assert sorted(reading.path_of(o.name) for o in origins) == sorted(
        [str(image), *map(str, source.glob("*.png"))]
    )
    notes = [path for path, _ in reading.rejected() if path.endswith("note.txt")]
    assert notes == [str(source / "note.txt")] * 2


def test_each_of_several_folders_has_its_own_layout_and_tables(tmp_path: Path) -> None:
    pixels_HW = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)
    for number, name in enumerate(("A", "B")):
        for part, values_HW in (("images", pixels_HW + number), ("masks", pixels_HW > 2000)):
            (tmp_path / name / part).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / name / part / "1.png"), values_HW.astype(np.uint16) * 255)
        (tmp_path / name / "labels.csv").write_text(f"file,site\nimages/1.png,site {name}\n")
    archive = shutil.make_archive(str(tmp_path / "C"), "zip", tmp_path / "B")
    folders = [tmp_path / "A", tmp_path / "B"]
    reading = reading_of(folders, tmp_path / "work", layout="any")
    assert sorted(s.site for s, _ in reading) == ["site A", "site B"]
    assert [len(s.lesions) for s, _ in reading] == [1, 1]
    named = {reading.path_of(o.name) for many in reading.origins.values() for o in many}
    assert named == {str(f / "images/1.png") for f in folders}
    zipped = reading_of([tmp_path / "A", Path(archive)], tmp_path / "zipped", layout="any")
    assert sorted(s.site for s, _ in zipped) == ["site A", "site B"]
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    broken = reading_of([tmp_path / "A", tmp_path / "empty.zip"], tmp_path / "broken", layout="any")
    assert len(list(broken)) == 1
    assert [path for path, _ in broken.rejected()] == [str(tmp_path / "empty.zip")]


def test_images_beside_dicom_are_scans_for_any_and_none_for_auto(
    cohort: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "scan.dcm").symlink_to(cohort / "PHANTOM-0001" / "anterior.dcm")
    cv2.imwrite(str(folder / "picture.png"), np.full((64, 64), 9, np.uint16))
    auto = reading_of(folder, tmp_path / "auto")
    assert [path for path, _ in auto.rejected()] == [str(folder / "picture.png")]
    assert len(list(reading_of(folder, tmp_path / "any", layout="any"))) == 2


def test_steps_tell_which_part_of_a_frame_a_scan_covers(cohort: Path, tmp_path: Path) -> None:
    steps = ("knee_cut", "montage")
    reading = reading_of(cohort / "PHANTOM-0001", tmp_path / "work", steps=steps)
    ((scan, counts_HW),) = reading
    left, right = reading.origins[scan.scan_id]
    assert [Path(o.name).name for o in (left, right)] == ["anterior.dcm", "posterior.dcm"]
    assert (left.x, right.x) == (0, 64)
    assert counts_HW.shape == (172, 128)


def test_steps_that_undo_each_other_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="brightness and max_min undo each other"):
        reading_of(source, tmp_path / "work", steps=("brightness", "max_min"))
