"""Hostile studies, weights, archives, annotations and study folders run nothing, reach nothing and
end in one line.
"""

from __future__ import annotations

import ast
import gzip
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from pretend import pretend

from raybone.cli import main
from raybone.data.dataset import open_dataset
from raybone.data.ingest.annotations import formats, nifti
from raybone.data.ingest.prepare import prepare
from raybone.errors import DamagedFile, WrongInput
from raybone.hpo.journal import Journal
from raybone.models import load
from raybone.storage import Folder
from raybone.train.apply import evaluate_weights

ROOT = Path(__file__).resolve().parents[1]
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
SHELLS = {"subprocess", "pty", "commands", "popen2"}
# A checkout asks git for its commit, and a machine nvidia-smi for its GPUs, in words that nothing
# from outside has a part in; a tracker is raybone itself, with the study's words as its arguments.
ALLOWED = {
    path: ["import subprocess"]
    for path in ("raybone/version.py", "raybone/environment.py", "raybone/run/followers.py")
}


def dangers(source: str) -> list[str]:
    """What in a source can run text or bytes from outside: line and words."""
    found = []
    tree = ast.parse(source)
    safe = {
        c.name
        for c in ast.walk(tree)
        if isinstance(c, ast.ClassDef) and [ast.unparse(b) for b in c.bases] == ["yaml.SafeLoader"]
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} - {"UnpicklingError"}  # an exception runs nothing
            if not names:
                continue
            rooms = {n.split(".")[0] for n in [*names, getattr(node, "module", None) or ""]}
            if (
                rooms & (PICKLES | SHELLS)
                or names & {"eval", "exec", "system", "popen"}
                or (getattr(node, "module", None) == "PIL.Image" and "open" in names)
            ):
                found.append(f"{node.lineno} {ast.unparse(node)}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        wrong = (
            called in ("eval", "exec", "compile", "__import__")
            or called.startswith(("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn"))
            or keywords.get("shell", "False") != "False"
            or keywords.get("allow_pickle", "False") != "False"
            or (
                called.startswith("yaml.")
                and "load" in called
                and called != "yaml.safe_load"
                and keywords.get("Loader") not in safe
            )
            or (
                called in ("torch.load", "load_state_dict_from_url", "torch.hub.load")
                and keywords.get("weights_only") != "True"
            )
            or called.endswith("read_pickle")
            # Pillow starts any of its decoders, Ghostscript among them, unless it is told which.
            or (called.endswith("Image.open") and "formats" not in keywords)
        )
        if wrong:
            found.append(f"{node.lineno} {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "path",
    [
        str(p.relative_to(ROOT))
        for room in ("raybone", "jobs")
        for p in sorted((ROOT / room).rglob("*.py"))
    ],
)
def test_nothing_in_the_source_runs_what_comes_from_outside(path: str) -> None:
    seen = [danger.partition(" ")[2] for danger in dangers((ROOT / path).read_text())]
    assert seen == ALLOWED.get(path, [])


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "import pickle",
        "from pickle import load",
        "import subprocess",
        "os.system(name)",
        "os.popen(name)",
        "os.execvp(name, [])",
        "from os import system",
        "run(x, shell=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load_all(text)",
        "torch.load(path)",
        "class L(yaml.Loader): pass\nyaml.load(text, Loader=L)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "__import__(name)",
        "torch.hub.load(a, b)",
        "Image.open(path)",
        "from PIL.Image import open",
        "PIL.Image.open(file, 'r')",
    ],
)
def test_a_danger_is_seen(source: str) -> None:
    assert dangers(source)


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_weights_that_carry_code_are_refused_and_the_code_does_not_run(
    dataset: Path, study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = {"net": Trap(tmp_path / "sprung"), "average": Trap(tmp_path / "sprung")}
    (tmp_path / "st" / "runs" / "c000" / "fold0").mkdir(parents=True)
    torch.save(trap, tmp_path / "st" / "runs" / "c000" / "fold0" / "last.pt")
    torch.save(trap, tmp_path / "last.pt")
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {
                **study,
                "epochs": 1,
                "search": {"trials": 1, "scheduler": "full"},
                "limits": {"failed_trials": 0},
            }
        )
    )
    assert main(["search", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "st"), "--local"]) == 1
    assert (
        f"{tmp_path}/st/runs/c000/fold0/last.pt: must hold weights and nothing that runs"
        in capsys.readouterr().err
    )
    model, opened = load("unet"), open_dataset(dataset)
    with pytest.raises(DamagedFile, match="nothing that runs"):
        evaluate_weights(opened, model, model.Config(), Folder(tmp_path), opened.scans, gpu=False)
    assert not (tmp_path / "sprung").exists()


LAUGHS = "".join(
    f"  {b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij")
)
PARAMS = ", ".join(f"{c}: {{choice: [1, 1.5, x, true, null]}}" for c in "abcdefghijklmnopqrst")
HOSTILE = {
    "python": "fixed: !!python/object/apply:os.mkdir [sprung]\n",
    "aliases without end": "fixed:\n  a: &a [x, x, x, x, x, x, x, x, x]\n" + LAUGHS,
    "an alias of itself": "fixed: &x {a: *x}\n",
    "a nest": "fixed: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "a list as a key": "? [a]\n: 1\n",
    "a mapping as a key": "fixed: {{a: 1}: 2}\n",
    "a number of 5000 digits": f"keep: {'9' * 5000}\n",
    "a day that is none": "keep: 2020-13-45\n",
    "a rule over all types": f"space: {{{PARAMS}}}\nsearch: {{reject: "
    f"['{'=='.join('abcdefghijklmnopqrst')}']}}\n",
    "a rule that makes long text": "space: {a: {choice: [xxx, y]}}\nsearch: {reject: "
    "['a*99999999*999 == a']}\n",
    "a rule with an attribute": "space: {a: {choice: [3]}}\nsearch: {reject: ['a.__class__ == "
    "3']}\n",
    "a rule with a call": "space: {a: {choice: [3]}}\nsearch: {reject: ['print(a) == 3']}\n",
    "a rule with a comprehension": "space: {a: {choice: [3]}}\nsearch: {reject: ['[a for a in "
    "(1,)] == a']}\n",
    "a rule with a format": 'space: {a: {choice: [3]}}\nsearch: {reject: [\'f"{a:9999999}" == '
    "3']}\n",
    "a rule with a shift": "space: {a: {choice: [3]}}\nsearch: {reject: ['a << 999999999 > 1']}\n",
    "a rule with a power": "space: {a: {choice: [3]}}\nsearch: {reject: ['a ** 9 ** 9 ** 9 > "
    "1']}\n",
}


def test_hostile_studies_are_wrong_input_and_neither_run_nor_hang(tmp_path: Path) -> None:
    base = "name: s\ndataset: d\nmodel: unet\nepochs: 1\nmetric: dice\n"
    for name, text in HOSTILE.items():
        (tmp_path / f"{name}.yaml").write_text(base + text)
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.yaml").write_text(base + text)
    code = (
        "import resource, sys\nfrom raybone.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "for n in sys.argv[1:]:\n    print('', n, *(main(v) for v in ("
        "['preview', n + '.yaml'], ['watch', n, '--once'], ['logs', n], ['stop', n])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *HOSTILE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [f" {name} 2 2 2 2" for name in HOSTILE], done.stderr
    assert all(line.startswith("raybone: ") for line in done.stderr.splitlines())
    assert not (tmp_path / "sprung").exists()


def test_a_network_is_never_read_from_the_current_folder(tmp_path: Path) -> None:
    network = "activation: __import__('os').mkdir('sprung') or torch.nn.SiLU()\n"
    from ultralytics.utils import ROOT as PACKAGE

    for name in ("yolo11", "yolo11n"):
        (tmp_path / f"{name}.yaml").write_text(
            (PACKAGE / "cfg/models/11/yolo11.yaml").read_text() + network
        )
    code = "from raybone.models import load; m = load('yolo11n'); m.build(m.Config())"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["yolo11.yaml", "yolo11n.yaml"]


def test_members_of_an_archive_stay_inside_and_links_are_not_followed(
    cohort: Path, tmp_path: Path
) -> None:
    scans = sorted(cohort.rglob("*.dcm"))
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "aim.dcm").write_bytes(scans[-1].read_bytes())
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        for number, scan in enumerate(scans[:6]):
            archive.write(scan, f"{number}.dcm")
        for name in (
            "../../../sprung",
            "../sprung",
            f"{tmp_path}/sprung",
            "a/../../../sprung",
            "..\\sprung",
        ):
            archive.writestr(name, b"x")
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "aim.dcm"))
    made = prepare(tmp_path / "in", tmp_path / "out" / "ds", folds=2, key=tmp_path / "k")
    assert made.meta["counts"]["scans"] == 6
    assert not [p for p in tmp_path.rglob("*sprung*") if p.is_file()]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ds"]


def test_an_archive_larger_than_the_disk_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("scan.dcm", b"x" * 100)
        archive.infolist()[0].file_size = 1 << 60
        archive.infolist()[0].extract_version = archive.infolist()[0].create_version = 45
    with pytest.raises(WrongInput, match=r"needs 1152921504\.6 GB, more than the disk has free"):
        prepare(tmp_path / "a.zip", tmp_path / "ds", key=tmp_path / "k")


def test_annotations_that_unpack_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    image = nibabel.Nifti1Image(np.zeros((64, 64, 64), np.uint8), np.eye(4))
    small = gzip.compress(image.to_bytes())
    assert len(nifti.read_nifti(small, (64, 64), None, {}).frames) == 64
    monkeypatch.setattr(nifti, "MOST_BYTES", 1 << 17)
    with pytest.raises(ValueError, match="fewer values than its header says"):
        nifti.read_nifti(small, (64, 64), None, {})
    voc = (
        "<?xml version='1.0' encoding='{0}'?><!DOCTYPE a [<!ENTITY e "
        "'m'>]><annotation><object><name>&e;</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(ValueError, match="declares entities, which are not read"):
            formats.read_voc(voc.format(encoding).encode(encoding), (64, 64))


@pytest.mark.parametrize(
    "url", ["simplecache::memory://x", "zip://a.csv::file:///tmp/x.zip", "filecache::s3://b/x"]
)
def test_a_chain_of_filesystems_is_refused(url: str) -> None:
    with pytest.raises(WrongInput, match="not a chain with '::'"):
        Folder(url)


@pytest.mark.parametrize("words", [["watch"], ["stop"], ["logs"], ["leaderboard"]])
def test_a_password_in_a_url_is_refused_and_not_shown(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "ftp://me:hunter2@host/study"]) == 2
    error = capsys.readouterr().err
    assert "must hold no password" in error
    assert "hunter2" not in error


def test_reading_a_study_asks_no_address_that_it_names(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = list[str]()

    class Server(http.server.SimpleHTTPRequestHandler):
        def parse_request(self) -> bool:
            asked.append(str(self.raw_requestline))
            return super().parse_request()

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Server, directory=dataset.parent)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, place = f"http://127.0.0.1:{server.server_port}/{dataset.name}", str(tmp_path / "st")
        pretend(place, dataset, "AUC")
        text = Path(place, "study.yaml").read_text()
        Path(place, "study.yaml").write_text(text.replace(str(dataset), url))
        for words in (
            ["watch", place, "--once"],
            ["logs", place],
            ["leaderboard", place],
            ["report", place],
            ["compare", place],
        ):
            assert main(words) == 0
            told = [
                line
                for line in [*"\n".join(capfd.readouterr()).splitlines(), *caplog.messages]
                if url in line
            ]
            caplog.clear()
            assert len(told) == (words[0] in ("report", "compare"))
            assert all(
                "is not asked; if you trust it, give it as --dataset" in line for line in told
            )
        assert "is not asked" in Path(place, "report.html").read_text()
        assert asked == []
        assert main(["report", place, "--dataset", url]) == 0
        assert len(asked) > 3
        server.shutdown()


def test_a_journal_from_outside_names_nothing_beyond_its_study_and_sends_no_codes_to_the_terminal(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = {"dataset_hash": "h", "code_version": "v", "folds": 3, "ladder": [[3, 3]]}
    (tmp_path / "st").mkdir()
    (tmp_path / "st" / "study.yaml").write_text(yaml.safe_dump({**study, "resolved": resolved}))
    (tmp_path / "secret.txt").write_text("of others")
    journal = Journal(Folder(tmp_path / "st"))
    journal.append("config", config_id="c0", params={})
    journal.append("failed", config_id="c0", reason="\x1b]0;title\x07[/red]")
    assert main(["logs", str(tmp_path / "st")]) == 0
    assert "failed: ?]0;title?[/red]" in capsys.readouterr().out
    journal.append("config", config_id="../../secret", params={})
    journal.append("failed", config_id="../../secret", reason="r")
    for words in (["logs"], ["leaderboard"]):
        main([*words, str(tmp_path / "st")])
        assert "of others" not in "".join(capsys.readouterr())
    for act in (
        Folder(tmp_path / "st").read,
        Folder(tmp_path / "st").delete,
        Folder(tmp_path / "st").child,
    ):
        with pytest.raises(WrongInput, match="must be a name below the study folder"):
            act("logs/../../secret.txt")
    assert (tmp_path / "secret.txt").exists()
