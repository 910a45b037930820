"""Every command of the user journeys runs, in their order, on the scans that the first one makes;
links lead somewhere.

``sh`` blocks are run as they stand, but for ``--local`` at each search, as other tests search on
Ray, and ``forget`` at the end, as a study does not outlive its dataset. Blocks without a language
need a cluster or somebody's data: of them verbs and options are checked.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from raybone.cli import main, parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("C*.md"))]
JOURNEYS = ("researcher", "reviewer", "admin")


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.S | re.M)


def commands(text: str) -> list[list[str]]:
    """The raybone commands of a block, without comments."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the journeys are gone; the researcher's study is its ours.yaml."""
    folder = tmp_path_factory.mktemp("docs")
    (study,) = blocks(ROOT / "docs/researcher.md", "yaml")
    (folder / "ours.yaml").write_text(study)
    return folder


@pytest.mark.parametrize("name", JOURNEYS)
def test_every_command_of_a_journey_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    if name != "researcher" and not (folder / "runs/ours").exists():
        pytest.skip("goes on where the researcher's journey ended, which has not run")
    withdrawn = [
        c
        for text in blocks(ROOT / "docs/researcher.md", "sh")
        for c in commands(text)
        if c[1] == "forget"
    ]
    todo = [c for text in blocks(ROOT / f"docs/{name}.md", "sh") for c in commands(text)]
    assert len(todo) >= 3
    for words in (c for c in todo if c not in withdrawn):
        assert words[0] == "raybone"
        local = ["--local"] if words[1] == "search" and "--local" not in words else []
        assert main([*words[1:], *local]) == 0, shlex.join(words)
    told = capsys.readouterr().out
    if name == "researcher":
        assert len((folder / "found/predictions.csv").read_text().splitlines()) > 2
        assert len(list((folder / "found").glob("*.seg.dcm"))) > 1
    if name == "reviewer":
        assert (folder / "again.csv").read_text() == (folder / "ours.csv").read_text()
    if name == JOURNEYS[-1]:  # the last, as the study would not go on without its patient
        assert [main(words[1:]) for words in withdrawn] == [0]
        assert "models/ours: was trained on them" in capsys.readouterr().out
        assert "kind: RayJob" in told


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_of_a_page_is_one_that_there_is(page: Path) -> None:
    for text in [*blocks(page, ""), *blocks(page, "sh")]:
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("raybone "):
                parser().parse_args(shlex.split(re.split(r" [|>] ", line)[0], comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_path_that_pages_jobs_and_manifests_name_is_there() -> None:
    """Those of the project, but for what a page or a benchmark makes."""
    files = [
        *PAGES,
        *(
            p
            for folder in ("jobs", "k8s", "benchmarks")
            for p in (ROOT / folder).rglob("*")
            if p.suffix in (".yaml", ".sh", ".py") or p.name.startswith("Dockerfile")
        ),
    ]
    named = {
        (path.name, target.rstrip(".-/"))
        for path in files
        for target in re.findall(
            r"(?<![\w./-])((?:jobs|docs|k8s|tests|benchmarks)/[\w./*-]+|raybone/[\w/]+\.\w+|\w+\.md\b)",
            path.read_text(),
        )
    }
    assert {
        ("researcher.md", "data.md"),
        ("README.md", "jobs/paper.sh"),
        ("README.md", "docs/study.md"),
    } <= named
    places = (ROOT, ROOT / "docs")
    assert {
        pair for pair in named if not any(next(place.glob(pair[1]), None) for place in places)
    } == set()


def test_the_commits_that_show_how_are_there_and_short() -> None:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout

    if (
        not (ROOT / ".git").exists()
        or shutil.which("git") is None
        or git("rev-parse", "--is-shallow-repository").strip() == "true"
    ):
        pytest.skip("needs the history of the repository")
    renamed = git("log", "--reverse", "-M40%", "--diff-filter=R", "--name-status", "--format=")
    moves = [line.split("\t")[1:] for line in renamed.splitlines() if line]

    def now(path: str) -> str:
        for before, after in moves:
            path = after if path == before else path
        return path

    subjects = dict(line.split("\t")[::-1] for line in git("log", "--format=%H%x09%s").splitlines())
    shown = re.findall(r"^> (.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert len(shown) == 3
    for subject in shown:
        rows = git("show", "--numstat", "--format=", subjects[subject]).splitlines()
        assert 10 < sum(int(row.split("\t")[0]) for row in rows) < 100, subject
        (told,) = re.findall(
            re.escape(subject) + r"\n\n((?:\|.*\n)+)", (ROOT / "CONTRIBUTING.md").read_text()
        )
        files = [now(row.split("\t")[2]) for row in rows]
        assert all(f"`{file}`" in told for file in files if (ROOT / file).exists()), subject


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_the_cluster_of_ray_up_is_one_that_ray_takes() -> None:
    """By what `ray up` itself checks files with."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((ROOT / "docs/ray-up.yaml").read_text())
    prepared = prepare_config(content)
    validate_config(prepared)
    assert prepared["max_workers"] == len(content["provider"]["worker_ips"])
    for command in (*content["head_start_ray_commands"], *content["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
