"""Who is one patient, and no identity of the source in any file of a dataset or study, in any log
or terminal line.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.valuerep import VR

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.dicom.frames import write_scan
from raybone.data.ingest.prepare import prepare
from raybone.data.inspect import inspect
from raybone.phantom.phantom import phantom

SECRET = "Qxjzw"
DATE = "19911231"
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value")
UID = "1.2.826.0.1.99.4242"
TEXTS = {VR.AE, VR.CS, VR.LO, VR.LT, VR.PN, VR.SH, VR.ST, VR.UC, VR.UT, VR.UR}


def plant(scan: Dataset, number: int) -> None:
    """The secret in every text element, a date in every date, a UID in every UID; private, nested
    and overlong.
    """
    for element in list(scan):
        if element.VR == VR.SQ:
            for item in element.value:
                plant(item, number)
        elif element.VR in TEXTS and element.keyword not in (
            "Modality",
            "PhotometricInterpretation",
            "ImageType",
        ):
            element.value = f"{SECRET}{number}"
    for keyword in (
        "PatientName",
        "PatientID",
        "OtherPatientIDs",
        "PatientComments",
        "ImageComments",
        "StudyDescription",
        "InstitutionName",
        "StationName",
        "OperatorsName",
        "ReferringPhysicianName",
        "AccessionNumber",
        "Manufacturer",
        "ManufacturerModelName",
        "ProtocolName",
        "SeriesDescription",
        "DeviceSerialNumber",
    ):
        setattr(scan, keyword, f"{SECRET}{number}")
    scan.StudyDate = scan.PatientBirthDate = scan.AcquisitionDate = DATE
    scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.SOPInstanceUID = (
        f"{UID}.{number}.{k}" for k in range(3)
    )
    block = scan.private_block(0x11, f"{SECRET} MEDICAL", create=True)
    block.add_new(1, "LO", SECRET)
    inner = Dataset()
    inner.PatientName = inner.ImageComments = SECRET
    block.add_new(2, "SQ", [inner])
    scan.RequestAttributesSequence = [inner]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scans, notes and hopeless files, all of which name the patient everywhere they
    can.
    """
    root = tmp_path_factory.mktemp("in") / f"{SECRET} {DATE}"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        path = root / f"{SECRET}-{number}" / f"{SECRET}_{DATE}.dcm"
        path.parent.mkdir()
        write_scan(
            path,
            rng.poisson(5, (96, 64)).astype(np.uint16),
            patient="P",
            view="anterior",
            pixel_mm=2,
            uid="1",
        )
        scan = pydicom.dcmread(path)
        plant(scan, number)
        if number == 4:
            scan.Modality = SECRET.upper()
        if number == 5:
            scan.ImageType = ["ORIGINAL", "PRIMARY", SECRET.upper(), "EMISSION"]
        if number == 6:
            scan.PixelSpacing = None
            scan.add_new("Rows", "US", 97)
        scan.save_as(path, enforce_file_format=False)
    shapes = [{"label": SECRET, "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}]
    note = {
        "shapes": shapes,
        "imageHeight": 96,
        "imageWidth": 64,
        "imagePath": SECRET,
        "imageData": None,
    }
    (root / f"{SECRET}-0" / f"{SECRET}_{DATE}.json").write_text(json.dumps(note))
    (root / f"{SECRET}-1" / f"{SECRET}_{DATE}.xml").write_text(f"<{SECRET}")
    (root / f"{SECRET}.txt").write_text(f"{SECRET} {DATE}")
    (root / f"note {SECRET}.json").write_text(json.dumps({"patient": SECRET}))
    with zipfile.ZipFile(root / f"{SECRET}.zip", "w") as archive:
        archive.writestr(
            f"{SECRET}/{SECRET}.dcm",
            (root / f"{SECRET}-3" / f"{SECRET}_{DATE}.dcm").read_bytes()[:700],
        )
    (root / f"broken-{SECRET}.zip").write_bytes(b"PK\x03\x04" + SECRET.encode())
    return root


def run(*arguments: Any, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with all that it and its children say."""
    return subprocess.run(
        [sys.executable, "-m", "raybone", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **keywords,
    )


def test_nothing_planted_anywhere_comes_out(source: Path, tmp_path: Path) -> None:
    made = run("prepare", source, tmp_path / "ds", "--folds", 2, "--key", tmp_path / "keys" / "k")
    looked = [
        run("inspect", tmp_path / "ds", *more)
        for more in (("--png", tmp_path / "sheet.png"), ("--json",))
    ]
    assert [made.returncode, *(c.returncode for c in looked)] == [0, 0, 0], made.stderr
    content = b"\n".join(p.read_bytes() for p in (tmp_path / "ds").rglob("*") if p.is_file())
    names = "\n".join(str(p.relative_to(tmp_path)) for p in (tmp_path / "ds").rglob("*"))
    said = "\n".join(c.stdout + c.stderr for c in (made, *looked))
    for trace in (SECRET, SECRET.upper(), SECRET.lower(), DATE, UID, "MEDICAL"):
        assert trace.encode() not in content, trace
        assert trace not in names + said, trace
    counts = json.loads((tmp_path / "ds" / "dataset.json").read_text())["counts"]
    # 8 scans, of which Modality, size and annotation refuse three; two notes, two archives'
    # contents.
    assert counts["scans"] == 5
    assert counts["rejected"] == 7
    assert not list(tmp_path.glob(".*"))


def test_the_terminal_names_files_when_asked_and_the_map_is_its_owners(
    source: Path, tmp_path: Path
) -> None:
    made = run(
        "prepare", source, tmp_path / "ds", "--folds", 2, "--key", tmp_path / "k", "--show-paths"
    )
    assert f"{SECRET}.txt: not taken: is not a DICOM file" in made.stdout
    (table,) = tmp_path.glob("k.*.sources.csv")
    assert (
        stat.S_IMODE(table.stat().st_mode) == stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    )
    assert len(table.read_text().splitlines()) == 1 + 12


@pytest.mark.parametrize(
    "case", ["nothing there", "no scans", "bad annotations", "bad labels", "bad split", "closed"]
)
def test_no_message_names_the_source(case: str, tmp_path: Path) -> None:
    root = tmp_path / SECRET
    more: list[Any] = []
    if case != "nothing there":
        phantom(root, 2, height=128, layout="coco" if case == "bad annotations" else "dicom")
    if case == "no scans":
        for path in root.rglob("*.dcm"):
            path.write_text(SECRET)
    elif case == "bad annotations":
        coco = json.loads((root / "annotations.json").read_text())
        coco["images"][0]["id"] = {SECRET: 1}
        (root / "annotations.json").write_text(json.dumps(coco))
    elif case == "bad labels":
        (root / "labels.csv").write_text(
            "patient_id,note\n" + "".join(f"{n},{SECRET}{n}\n" for n in range(9))
        )
    elif case == "bad split":
        (tmp_path / "s.csv").write_text(f"patient_id,fold\n{SECRET},0\n{SECRET},1\n")
        more = ["--split", tmp_path / "s.csv"]
    elif case == "closed":
        shutil.rmtree(root)
        root.write_text(SECRET)
    made = run("prepare", root, tmp_path / "ds", "--key", tmp_path / "k", *more)
    assert made.returncode == 2
    assert sum(line.startswith("raybone: ") for line in made.stderr.splitlines()) == 1
    assert SECRET not in made.stdout + made.stderr
    assert not (tmp_path / "ds").exists()


def test_a_study_names_nobody_either(
    study: dict[str, object], cohort: Path, tmp_path: Path
) -> None:
    """The cohort's patients are called PHANTOM-0001 and so on, in files of that name."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "epochs": 1}))
    done = run("search", tmp_path / "s.yaml", "--out", tmp_path / "study", "--local")
    assert done.returncode == 0, done.stderr
    files = [p for p in (tmp_path / "study").rglob("*") if p.is_file()]
    assert {"leaderboard.csv", "study.yaml", "predictions.json"} <= {p.name for p in files}
    uid = str(pydicom.dcmread(next(cohort.rglob("*.dcm"))).StudyInstanceUID)
    for trace in ("PHANTOM-0", cohort.name + "/", uid):
        assert not [
            p.name
            for p in files
            if trace.encode() in p.read_bytes() or trace in str(p.relative_to(tmp_path))
        ]
        assert trace not in done.stdout + done.stderr


def cohort_of(root: Path, *patients: dict[str, Any], unlike: int = 4) -> Path:
    """A scan a file, 0.dcm and so on, each of a study of its own, with these elements; and others
    that are nobody's.
    """
    root.mkdir()
    others = [
        {"PatientID": f"OTHER-{n}", "PatientName": f"Other^{chr(65 + n)}"} for n in range(unlike)
    ]
    for number, elements in enumerate([*patients, *others]):
        rng, path = np.random.default_rng(number), root / f"{number}.dcm"
        rough_HW = np.repeat(np.repeat(rng.gamma(0.5, 12, (16, 8)), 8, 0), 8, 1)
        write_scan(
            path,
            rng.poisson(rough_HW).astype(np.uint16),
            patient=f"P{number}",
            view="anterior",
            pixel_mm=2,
            uid=f"{number}",
        )
        scan = pydicom.dcmread(path)
        scan.PatientName = f"Name^{chr(65 + number)}"
        for keyword, value in elements.items():
            setattr(scan, keyword, value)
        scan.save_as(path)
    return root


def prepared(
    root: Path, **options: Any
) -> tuple[dict[str, str], dict[str, int], dict[str, list[str]], list[str]]:
    """Patient and fold of each file, the files of each remark, and the warnings."""
    name = f"{root.name}-ds-{options.pop('name', '')}"
    made = prepare(
        root, root.parent / name, key=root.parent / f"{name}-key", **{"folds": 2, **options}
    )
    opened = open_dataset(made.path)
    file_of = {scan_id: Path(path).stem for _, scan_id, path in made.sources}
    patient_of = {file_of[s.scan_id]: s.patient_id for s in opened.scans}
    remarks = {rule: sorted(file_of[i] for i in ids) for rule, ids in made.meta["remarks"].items()}
    assert inspect(made.path)["warnings"][: len(made.meta["warnings"])] == made.meta["warnings"]
    return (
        patient_of,
        {f: opened.fold_of[p] for f, p in patient_of.items()},
        remarks,
        made.meta["warnings"],
    )


BORN = {"PatientBirthDate": "19500102"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"PatientID": "1"}, {"PatientID": "1", "IssuerOfPatientID": "HOSP"}),
        (
            {"PatientID": "1", "IssuerOfPatientID": "HOSP"},
            {"PatientID": "1", "IssuerOfPatientID": " hosp."},
        ),
        ({"PatientID": "1"}, {"PatientID": "1^^^HOSP&1.2&ISO"}),
        ({"PatientID": "007"}, {"PatientID": " 007 "}),
        (
            {"PatientID": "", "PatientName": "Smith^John", **BORN},
            {
                "PatientID": "ANON",
                "PatientName": "SMITH^JOHN^^Dr",
                "PatientBirthDate": "1950.01.02",
            },
        ),
        (
            {"PatientID": "1", "StudyInstanceUID": "1.2.3"},
            {"PatientID": "", "StudyInstanceUID": "1.2.3"},
        ),
    ],
    ids=str,
)
def test_what_is_written_otherwise_is_the_same_patient(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    patient, _, remarks, _ = prepared(
        cohort_of(
            tmp_path / "in",
            {**first, "PatientName": "Smith^John"},
            {**second, "PatientName": second.get("PatientName", "Smith^John")},
        )
    )
    assert patient["0"] == patient["1"]
    assert len(set(patient.values())) == 5
    assert not any("may be one person" in rule for rule in remarks)


@pytest.mark.parametrize(
    ("people", "rule"),
    [
        (
            [{"PatientID": "H-01"}, {"PatientID": "h 1"}, {"PatientID": "H_001"}],
            "but for case, blanks, zeros or signs",
        ),
        ([{"PatientID": "0017"}, {"PatientID": "17"}], "but for case, blanks, zeros or signs"),
        (
            [
                {"PatientID": "A", "PatientName": "Smith^John", **BORN},
                {"PatientID": "B", "PatientName": "smith^JOHN", **BORN},
            ],
            "name and birth date stand with another patient id",
        ),
        (
            [
                {
                    "PatientID": "A",
                    "PatientName": "Yamada^Tarou=山田^太郎",
                    "SpecificCharacterSet": "ISO_IR 192",
                    **BORN,
                },
                {
                    "PatientID": "B",
                    "PatientName": "=山田^太郎",
                    "SpecificCharacterSet": "ISO_IR 192",
                    **BORN,
                },
            ],
            "name and birth date stand with another patient id",
        ),
        (
            [
                {"PatientID": "A", "StudyInstanceUID": "1.2.3"},
                {"PatientID": "B", "StudyInstanceUID": "1.2.3"},
            ],
            "study that stands with two patient ids",
        ),
        (
            [
                {"PatientID": "1", "IssuerOfPatientID": "X"},
                {"PatientID": "1", "IssuerOfPatientID": "Y"},
                {"PatientID": "1"},
            ],
            "several issuers give: may be of any",
        ),
    ],
    ids=str,
)
def test_patients_who_may_be_one_person_are_named_and_in_one_fold_but_not_made_one(
    people: list[dict[str, Any]], rule: str, tmp_path: Path
) -> None:
    patient, fold, remarks, warnings = prepared(cohort_of(tmp_path / "in", *people))
    files = [str(n) for n in range(len(people))]
    assert len({patient[f] for f in files}) == len(
        {p["PatientID"] + p.get("IssuerOfPatientID", "") for p in people}
    )
    assert len({fold[f] for f in files}) == 1
    named = next(r for r in remarks if rule in r)
    assert remarks[named] == (["2"] if "any" in rule else files)
    assert any(w.startswith(f"{len(remarks[named])} x {named} (first s") for w in warnings)
    assert any(
        f"{len({patient[f] for f in files})} patients who may be one person" in w for w in warnings
    )


def test_an_id_of_two_issuers_is_two_patients(tmp_path: Path) -> None:
    people = [{"PatientID": "1", "IssuerOfPatientID": i} for i in "XY"]
    patient, _, remarks, warnings = prepared(cohort_of(tmp_path / "in", *people))
    assert len(set(patient.values())) == 6
    assert ["0", "1"] in remarks.values()
    assert not any("kept together" in w for w in warnings)


@pytest.mark.parametrize(
    "known", ["ANONYMOUS", "Anon", "unknown", "NONE", "TEST", "-", "N/A", "Anonymized", "0", "000"]
)
def test_a_placeholder_is_no_patient(known: str, tmp_path: Path) -> None:
    patient, _, remarks, warnings = prepared(
        cohort_of(
            tmp_path / "in",
            *[{"PatientID": known, "PatientName": "Anonymous", "PatientBirthDate": "19000101"}] * 3,
        )
    )
    assert len({patient[f] for f in "012"}) == 3
    assert ["0", "1", "2"] in remarks.values()
    assert any("3 x scan whose patient id is a placeholder" in w for w in warnings)
    assert any("3 scans have no patient id" in w for w in warnings)


def test_an_id_with_other_names_on_most_studies_is_a_placeholder_and_one_with_the_same_is_not(
    tmp_path: Path,
) -> None:
    for known, names, patients in (
        ("12345", "AAB", 3),
        ("12345", "AAA", 1),
        ("HOSP-7", "ABCDE", 5),
        ("HOSP-7", "ABBAA", 1),
    ):
        people = [{"PatientID": known, "PatientName": f"Some^{n}"} for n in names]
        root = cohort_of(tmp_path / f"{known}{names}", *people)
        patient, fold, remarks, warnings = prepared(root)
        files = [str(n) for n in range(len(names))]
        assert len({patient[f] for f in files}) == patients
        assert (files in remarks.values()) == (len(set(names)) > 1)
        if patients == 1:
            assert len({fold[f] for f in files}) == 1
            assert any("several names or birth dates" in w for w in warnings) == (
                len(set(names)) > 1
            )


def test_zeros_that_begin_a_numbering_are_a_patient(tmp_path: Path) -> None:
    people = [{"PatientID": f"00{n // 2}", "PatientName": f"Test^00{n // 2}"} for n in range(6)]
    patient, _, remarks, _ = prepared(cohort_of(tmp_path / "in", *people))
    assert len({patient[f] for f in "012345"}) == 3
    assert not any("placeholder" in rule for rule in remarks)


def test_a_name_and_birth_date_of_all_are_placeholders_too(tmp_path: Path) -> None:
    people = [{"PatientID": f"P-{n}", "PatientName": "Study^Alpha", **BORN} for n in range(8)]
    patient, fold, remarks, _ = prepared(cohort_of(tmp_path / "in", *people))
    assert len({patient[str(n)] for n in range(8)}) == 8
    assert {fold[str(n)] for n in range(8)} == {0, 1}
    assert [rule for rule in remarks if "taken for placeholders" in rule]


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """The scan of a patient again, with other noise, under another id."""
    root = cohort_of(tmp_path / "in", {}, {})
    scan = pydicom.dcmread(root / "0.dcm")
    noise_HW = np.random.default_rng(9).integers(0, 2, scan.pixel_array.shape)
    scan.PixelData = (scan.pixel_array + noise_HW).astype("<u2").tobytes()
    scan.PatientID, scan.PatientName, scan.StudyInstanceUID, scan.SOPInstanceUID = (
        "TWIN",
        "Twin^A",
        "1.2.3",
        "1.2.4",
    )
    scan.save_as(root / "twin.dcm")
    return root


def test_known_patients_who_look_alike_are_named_and_in_one_fold(twins: Path) -> None:
    patient, fold, remarks, warnings = prepared(twins)
    assert patient["0"] != patient["twin"]
    assert fold["0"] == fold["twin"]
    assert remarks["scan that looks like one of another patient: may be one person"] == [
        "0",
        "twin",
    ]
    assert any(
        "2 patients who may be one person with another are kept together in 1 groups" in w
        for w in warnings
    )
    with_another_key = prepared(twins, name="again")
    assert with_another_key[1] == fold
    assert set(with_another_key[0].values()).isdisjoint(patient.values())


def test_a_split_that_tears_look_alikes_apart_is_said(twins: Path, tmp_path: Path) -> None:
    ids = ["P0", "P1", "OTHER-0", "OTHER-1", "OTHER-2", "OTHER-3", "TWIN"]
    for fold, torn in ((1, True), (0, False)):
        lines = [f"{known},{fold if known == 'TWIN' else n % 2}" for n, known in enumerate(ids)]
        (tmp_path / "split.csv").write_text("\n".join(["patient_id,fold", *lines]))
        _, found, _, warnings = prepared(twins, split=tmp_path / "split.csv", name=f"split{fold}")
        assert found["twin"] == fold
        said = any(
            "1 pairs of patients who may be one person are in two folds by --split" in w
            for w in warnings
        )
        assert said == torn
        assert not any("kept together" in w for w in warnings)
    rows = [f"{n}.dcm,{'north' if n < 3 else 'south'}" for n in range(6)] + ["twin.dcm,south"]
    (twins / "labels.csv").write_text("\n".join(["file,site", *rows]))
    warnings = prepared(twins, folds="site", name="site")[3]
    assert any("are in two folds by --folds site" in w for w in warnings)


def test_tables_and_forget_know_a_patient_by_the_sources_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [
        {"PatientID": "1", "IssuerOfPatientID": "HOSP"},
        {"PatientID": "1"},
        {"PatientID": "2", "IssuerOfPatientID": "X"},
        {"PatientID": "2", "IssuerOfPatientID": "Y"},
        {"PatientID": "", "PatientName": "Smith^John", **BORN},
    ]
    root = cohort_of(tmp_path / "in", *people)
    (root / "labels.csv").write_text("patient_id,tumour\n1,lung\nX:2,breast\nY:2,lung\nGONE,lung\n")
    made = prepare(root, tmp_path / "ds", folds=2, key=tmp_path / "k")
    file_of = {scan_id: Path(path).stem for _, scan_id, path in made.sources}
    labels = {
        file_of[s.scan_id]: dict(s.labels).get("tumour") for s in open_dataset(made.path).scans
    }
    assert [labels[str(n)] for n in range(5)] == ["lung", "lung", "breast", "lung", None]
    assert any(
        w.startswith("1 x line of labels.csv without its scan") for w in made.meta["warnings"]
    )
    for name, scans in (("1", 2), ("X:2", 1), ("SMITH^John^:1950-01-02", 1)):
        assert (
            main(
                [
                    "forget",
                    str(tmp_path / "ds"),
                    name,
                    "--key",
                    str(tmp_path / "k"),
                    "--among",
                    str(root),
                ]
            )
            == 0
        )
        assert f"1 patient(s) with {scans} scan(s) deleted" in capsys.readouterr().out
    assert main(["forget", str(tmp_path / "ds"), "2", "--key", str(tmp_path / "k")]) == 2


def test_who_is_in_doubt_may_be_left_out_by_the_steps(tmp_path: Path) -> None:
    """The lone view of one of the two is no pair for the montage."""
    root = phantom(tmp_path / "in", 3, 3, height=128)
    for view in ("anterior", "posterior"):
        path = root / "PHANTOM-0001" / f"{view}.dcm"
        scan = pydicom.dcmread(path)
        scan.PatientID = "phantom 2"
        scan.save_as(path)
    (root / "PHANTOM-0001" / "posterior.dcm").unlink()
    made = prepare(
        root, tmp_path / "ds", folds=2, key=tmp_path / "k", steps=["montage"], allow_unmatched=True
    )
    assert made.meta["counts"]["patients"] == 2
    assert any("but for case, blanks, zeros or signs" in w for w in made.meta["warnings"])


def test_who_was_in_doubt_is_in_no_warning_once_forgotten(twins: Path, tmp_path: Path) -> None:
    made = prepare(twins, tmp_path / "ds", folds=2, key=tmp_path / "k")
    gone = made.meta["remarks"]["scan that looks like one of another patient: may be one person"]
    assert (
        main(
            [
                "forget",
                str(made.path),
                "P0",
                "TWIN",
                "--key",
                str(tmp_path / "k"),
                "--among",
                str(twins),
            ]
        )
        == 0
    )
    content = (made.path / "dataset.json").read_text()
    assert not [i for i in gone if i in content]
    assert "looks like one of another" not in content


def test_the_terminal_names_who_is_in_doubt(twins: Path, tmp_path: Path) -> None:
    made = run(
        "prepare", twins, tmp_path / "ds", "--folds", 2, "--key", tmp_path / "k", "--show-paths"
    )
    assert f"{twins / 'twin.dcm'}: scan that looks like one of another patient" in made.stdout
    assert (
        "warning: 2 x scan that looks like one of another patient: may be one person (first s"
        in made.stdout
    )
