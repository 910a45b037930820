"""Ray jobs on a cluster with token authentication, whose nodes have no raybone that works."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from heads import RAY, ROOT, Head, elsewhere, ended, running_head, wait_for

from raybone.cli import main
from raybone.errors import WrongInput
from raybone.run.ray.access import job_client

NAME = 'it\'s $(touch hacked) `touch hacked`;touch hacked\n"runs"'


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """One for all tests here."""
    with running_head() as made:
        yield made


def test_two_studies_run_as_jobs_and_the_token_is_nowhere(
    head: Head, study: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    """By `raybone submit` under a hostile name and by plain `ray job submit` of the checkout, at
    the same time.
    """
    out, file = tmp_path / NAME, tmp_path / "s $(x)'.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                **study,
                "epochs": 120,  # so that it is at work while the others ask
                "search": {**study["search"], "trials": 1},
                "resources": {"concurrent": 1},
            }
        )
    )
    submit = ("submit", file, "--address", head.url, "--out", out, "--follow")
    first = head.raybone(*submit)
    plain = head.command(
        RAY,
        "job",
        "submit",
        "--address",
        head.url,
        "--working-dir",
        ".",
        "--",
        "python",
        "jobs/search.py",
        "--study",
        "jobs/smoke.yaml",
        "--out",
        tmp_path / "st",
        "--set",
        f"dataset={dataset}",
        "epochs=1",
        "search.trials=1",
        "fixed.imgsz=64",
        "resources.concurrent=1",
        RAY_AUTH_MODE="token",
    )
    journal = out / "journal" / "000001.jsonl"
    wait_for(lambda: journal.exists() and '"work"' in journal.read_text(), first)
    near = os.path.relpath(out, ROOT)
    (tmp_path / "none.yaml").write_text(
        yaml.safe_dump({**study, "dataset": str(tmp_path / "none")})
    )
    wrong = head.raybone("submit", tmp_path / "none.yaml", "--address", head.url, "--follow")
    asked = [
        head.raybone(*submit, RAY_ADDRESS="http://127.0.0.1:1"),
        head.raybone("logs", f"{near}/", RAY_AUTH_TOKEN=""),
        head.raybone("watch", f"file://{out}", "--once", RAY_AUTH_TOKEN=""),
    ]
    (again, line), (_, logged), (_, watched) = map(ended, asked)
    assert (again, line.count("\n")) == (2, 1)  # although the folder's name has two
    assert "one job at a time, and raybone-tiny-" in line
    assert "a driver starts, with 1 run(s) at once" in logged
    assert "1 running" in watched
    code, said = ended(wrong)
    assert code == 2, said
    assert f"every node must reach {tmp_path}/none and {tmp_path}/runs/tiny" in said
    assert said.splitlines()[-1].startswith(
        f"raybone: dataset {tmp_path}/none: must be a folder made by"
    )
    code, said = ended(first)
    assert code == 0, said
    assert re.match(
        r"raybone-tiny-[0-9a-f]{8}-1: submitted with study.yaml and raybone's code, \d+ kB", said
    )
    assert "done: " in said
    assert list(pd.read_csv(out / "leaderboard.csv")["state"]) == ["complete"]
    assert re.search(r"fold 0 epoch 2: .*dice 0.* in ", ended(head.raybone("logs", out, "c000"))[1])
    code, said = ended(plain)
    assert code == 0, said
    assert len(pd.read_csv(tmp_path / "st" / "leaderboard.csv")) == 1
    assert (
        not list(tmp_path.rglob("hacked"))
        + list(head.place.rglob("hacked"))
        + list(ROOT.glob("hacked"))
    )
    assert_secret(head, out)


def assert_secret(head: Head, out: Path) -> None:
    """The token is in no file of the study or of Ray, in no process's arguments, in nothing told
    about jobs.
    """
    files = [p for place in (out, head.place) for p in place.rglob("*") if p.is_file()]
    assert len(files) > 30
    assert [p for p in files if head.token.encode() in p.read_bytes()] == []
    arguments = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not any(head.token in a for a in arguments)
    request = urllib.request.Request(
        f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    jobs = urllib.request.urlopen(request).read().decode()
    assert "raybone-tiny" in jobs
    assert head.token not in jobs


def test_a_wrong_address_or_token_is_one_clear_line(
    head: Head, study: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    submit = ("submit", tmp_path / "s.yaml", "--address")
    search = ("search", tmp_path / "s.yaml", "--out", tmp_path / "st", "--address")
    missing, wrong = (
        "the cluster asks for a token, but none is here",
        "refuses the token of RAY_AUTH_TOKEN",
    )
    cases: list[tuple[tuple[object, ...], dict[str, str], str]] = [
        ((*search, head.gcs), {"RAY_AUTH_TOKEN": "wrong" * 8}, wrong),
        ((*search, "127.0.0.1:1"), {}, "a Ray cluster must answer there, but: UNAVAILABLE"),
        ((*submit, head.url), {"RAY_AUTH_TOKEN": ""}, missing),
        ((*submit, head.url), {"RAY_AUTH_TOKEN": "wrong" * 8}, wrong),
        (
            (*submit, head.url),
            {"RAY_AUTH_MODE": "disabled"},
            "but RAY_AUTH_MODE=disabled sends none; unset it",
        ),
        (
            (*submit, head.url),
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/no"},
            f"must name a file with the cluster's token, got '{tmp_path}/no'",
        ),
        (
            (*submit, head.url),
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "token"},
            "needs a token, but none is here",
        ),
    ]
    for (_, _, line), process in [(c, head.raybone(*c[0], **c[1])) for c in cases]:
        code, said = ended(process)
        assert code == 2, said
        assert said.startswith("raybone: ")
        assert line in said
        assert said.count("\n") == 1
        assert head.token not in said
    assert not (tmp_path / "st").exists()


def test_an_address_that_is_not_of_a_dashboard_is_one_line(head: Head) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for address, why in (
            (f"http://127.0.0.1:{other.server_port}", "check the address"),
            ("http://127.0.0.1:1", "Connection refused"),
            (f"http://{head.gcs}", "check the address"),
            (head.gcs, "is no http or https URL"),
            (f"os://{head.gcs}", "is no http or https URL"),
        ):
            with pytest.raises(WrongInput, match="must be the URL of a Ray dashboard") as wrong:
                job_client(address)
            assert why in str(wrong.value)
            assert "\n" not in str(wrong.value)
        other.shutdown()


def test_a_dry_run_shows_what_would_be_sent_asks_no_cluster_and_reads_no_data(
    tmp_path: Path,
) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: s\ndataset: nowhere/ds\nmodel: unet\nepochs: 1\nmetric: dice\n"
    )
    command = [
        sys.executable,
        "-m",
        "raybone",
        "submit",
        "s.yaml",
        "--address",
        "http://h:1",
        "--dry-run",
    ]
    for token, place, more in (("", "nowhere/runs/s", []), ("se" * 16, NAME, ["--out", NAME])):
        done = subprocess.run(
            command + more,
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=elsewhere(tmp_path, {"RAY_AUTH_TOKEN": token}),
        )
        assert not token or token not in done.stdout + done.stderr
        shown = json.loads(done.stdout)
        assert shown["token from"] == ("RAY_AUTH_TOKEN" if token else "none")
        assert shown["out"] == f"{tmp_path}/{place}"
    assert shlex.split(shown["entrypoint"]) == [
        "python",
        "-m",
        "raybone",
        "search",
        "study.yaml",
        "--out",
        f"{tmp_path}/{NAME}",
        "--address",
        "auto",
    ]
    assert {"study.yaml", "raybone/__main__.py", "raybone/run/ray/tuner.py"} <= set(shown["files"])
    assert all(
        re.fullmatch(r"study.yaml|raybone/(version.txt|metrics/skeleton.yaml|[\w/]+\.py)", name)
        for name in shown["files"]
    )
    assert shown["bytes"] < 633_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "s.yaml"]


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ("fixed: {lrr0: 1}", "lrr0: unknown key; did you mean 'lr0'?"),
        ("metric: AP", "unet is a segmentation model"),
        (
            "space: {lr0: {uniform: [0, 100]}}",
            "space.lr0: must be less than or equal to 10",
        ),
        (
            "fixed: {batch: 4}\nresources: {workers: 3}",
            "must be a multiple of the 3 resources.workers, got 4",
        ),
        (
            "space: {imgsz: {uniform: [256, 512]}}",
            "space.imgsz: uniform draws fractions, but it is whole; use int_uniform",
        ),
        ("space: {lr0: {choice: [true, 0.1]}}", "space.lr0: must be a number, got true"),
    ],
)
@pytest.mark.parametrize("verb", ["submit", "slurm", "manifests"])
def test_a_study_that_cannot_be_right_is_not_sent_off(
    verb: str, keys: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(f"dataset: /raybone/ds\nmodel: unet\n{keys}\n")
    more = {"submit": ["--address", "http://h:1", "--dry-run"], "slurm": ["--out", "runs/a"]}
    assert main([verb, str(study), *more.get(verb, [])]) == 2
    told = capsys.readouterr()
    assert rule in told.err
    assert not told.out


@pytest.mark.parametrize("verb", ["submit", "slurm", "manifests"])
@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ("dataset: s3://key:secret@bucket/ours", "must hold no password"),
        ("dataset: simplecache::s3://bucket/ours", "not a chain with '::'"),
        (
            "dataset: /data/ds\nfixed: {init_from: 's3://key:secret@bucket/runs/a'}",
            "init_from: must be an address without a name and password",
        ),
        (
            "dataset: /data/ds\nspace: {weights: {choice: ['', 's3://key:secret@bucket/a.pt']}}",
            "weights: must be an address without a name and password",
        ),
    ],
)
def test_a_place_with_a_password_is_not_sent_off(
    keys: str, rule: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(f"{keys}\nmodel: unet\n")
    more = {"submit": ["--address", "http://h:1", "--dry-run"], "slurm": ["--out", "runs/a"]}
    assert main([verb, str(tmp_path / "s.yaml"), *more.get(verb, [])]) == 2
    told = capsys.readouterr()
    assert rule in told.err
    assert "secret" not in told.out + told.err


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--address", "http://me:secret@h:1"], "must hold no password"),
        (["--address", "http://h:1", "--wait", "-5"], "--wait -5: must be a number of minutes"),
        (["--address", "http://h:1", "--wait", "nan"], "--wait nan: must be a number of minutes"),
    ],
)
def test_a_job_that_would_fail_at_once_is_not_sent_off(
    more: list[str], rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text("dataset: /data/ds\nmodel: unet\n")
    assert main(["submit", str(tmp_path / "s.yaml"), *more, "--dry-run"]) == 2
    told = capsys.readouterr()
    assert rule in told.err
    assert "secret" not in told.out + told.err


def test_a_tilde_is_the_home_folder_and_trackers_are_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    study = tmp_path / "s.yaml"
    study.write_text("dataset: ~/ours\nmodel: unet\ntrack: ['mlflow:http://m:5000']\n")
    assert main(["submit", str(study), "--address", "http://h:1", "--dry-run"]) == 0
    sent = json.loads(capsys.readouterr().out)
    assert (sent["dataset"], sent["packages"]) == ("/home/anna/ours", ["raybone[trackers]"])
    assert sent["out"].startswith("/home/anna/runs/")
    assert main(["slurm", str(study), "--out", "~/runs/a"]) == 0
    script = capsys.readouterr().out
    assert "dataset: /home/anna/ours" in script
    assert "~" not in script
