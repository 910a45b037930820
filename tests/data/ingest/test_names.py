"""Names in annotations: the scan that is meant is found, and where two fit alike nobody guesses."""

from __future__ import annotations

import unicodedata

import pytest

from raybone.data.ingest.annotations.names import Ambiguous, Names

UMLAUT = "M\u00fcller.png"


@pytest.mark.parametrize(
    ("scans", "said", "note", "meant"),
    [
        (["images/1.png"], "images\\1.png", "a.json", "images/1.png"),
        (["images/1.png"], "./images/1.png", "a.json", "images/1.png"),
        (["images/1.png"], "/home/somebody/data/images/1.png", "a.json", "images/1.png"),
        (["images/1.png"], "C:\\data\\images\\1.png", "a.json", "images/1.png"),
        (["images/1.png"], "http://host:80/data/1.png?d=a/b", "a.json", "images/1.png"),
        (["images/1.png"], "1.PNG", "a.json", "images/1.png"),
        (["images/1.dcm"], "1.png", "a.json", "images/1.dcm"),
        (
            [unicodedata.normalize("NFD", UMLAUT)],
            UMLAUT,
            "a.json",
            unicodedata.normalize("NFD", UMLAUT),
        ),
        (["a b.png"], "a%20b.png", "a.json", "a b.png"),
        (["a%20b.png"], "a b.png", "a.json", "a%20b.png"),
        (
            ["\u8f6c.png".encode("gbk").decode("cp437")],
            "\u8f6c.png",
            "a.json",
            "\u8f6c.png".encode("gbk").decode("cp437"),
        ),
        (["images/Train/1.png"], "1.png", "annotations/instances_Train.json", "images/Train/1.png"),
        (
            ["images/Train/1.png", "images/Val/1.png"],
            "1.png",
            "annotations/instances_Val.json",
            "images/Val/1.png",
        ),
        (["train/1.png", "valid/1.png"], "1.png", "valid/_annotations.coco.json", "valid/1.png"),
        (["train/2.png", "valid/1.png"], "1.png", "train/_annotations.coco.json", None),
        (["p/a/img/1.png", "p/b/img/1.png"], "1.png", "p/b/ann/instances.json", "p/b/img/1.png"),
        (["ant/1.png", "post/2.png"], "post/1.png", "a.json", None),
        (["1.png", "1.jpg"], "1.jpg", "1.json", "1.jpg"),
        (["A.png", "a.png"], "a.png", "x.json", "a.png"),
        (["a/1.png", "b/1.png"], "../b/1.png", "a/1.json", "b/1.png"),
        (["1.png"], "", "1.json", None),
        (["1.png"], "..", "1.json", None),
    ],
)
def test_what_an_annotation_says_finds_the_scan_that_is_meant(
    scans: list[str], said: str, note: str, meant: str | None
) -> None:
    assert Names(scans).said(said, note) == meant


@pytest.mark.parametrize(
    ("scans", "note", "meant"),
    [
        (["1.png", "2.png"], "1.json", "1.png"),
        (["1.png"], "1.png.json", "1.png"),
        (["1.dcm"], "1.nii.gz", "1.dcm"),
        (["JPEGImages/a/1.jpg", "JPEGImages/b/1.jpg"], "Annotations/b/1.xml", "JPEGImages/b/1.jpg"),
        (["JPEGImages/b/1.jpg"], "Annotations/a/1.xml", None),
        (["p/1.dcm", "q/2.dcm"], "q/1.xml", None),
        (["deep/p/1.dcm"], "Annotations/1.xml", "deep/p/1.dcm"),
        (["1.png"], "labels/1.xml", "1.png"),
        (["p/images/1.png", "q/images/1.png"], "q/labels/1.xml", "q/images/1.png"),
    ],
)
def test_an_annotation_goes_with_the_scan_of_its_name_in_its_folder_or_a_tree_like_it(
    scans: list[str], note: str, meant: str | None
) -> None:
    assert Names(scans).like(note) == meant


@pytest.mark.parametrize(
    ("scans", "said", "note"),
    [
        (["1.png", "1.jpg"], "1.dcm", "1.json"),
        (["1.png", "1.jpg"], None, "1.json"),
        (["a/1.png", "b/1.png"], "1.png", "x.json"),
        (["a/1.png", "b/1.png"], None, "notes/1.xml"),
        (["A.png", "a.png"], "a.PNG", "x.json"),
    ],
)
def test_several_that_fit_alike_are_named(scans: list[str], said: str | None, note: str) -> None:
    with pytest.raises(Ambiguous) as several:
        Names(scans).like(note) if said is None else Names(scans).said(said, note)
    assert several.value.names == sorted(scans)


def test_a_text_beside_a_scan_is_no_rival_of_it() -> None:
    assert Names(["1.png", "1.txt"], lambda name: name.endswith("png")).like("1.json") == "1.png"
