"""What a wheel, a source archive and a submitted job carry: version, studies, declared imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from raybone.cli import main
from raybone.phantom.phantom import phantom
from raybone.study.examples import examples
from raybone.version import RELEASE, version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILT_OF = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "raybone", "jobs")
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
COMMIT = re.escape(RELEASE) + r"\+g[0-9a-f]{12}"
# What makes the README's study one of seconds.
SMALL = {
    "epochs=60,": 'epochs=1, search={"trials": 1, "scheduler": "full"},',
    'models=["yolo11n", "retinanet_r18"]': """models={
        "yolo11n": {"space": {}},
        "retinanet_r18": {"fixed": {"channels": 8, "anchor": 0.1}},
    }""",
    "rb.choice(512, 1024)": "rb.choice(64, 96)",
    "folds=5)": 'folds=2, key="key")',
}


def git(folder: Path, *words: str) -> str:
    """What git prints, less than no hook of the checkout that runs the tests."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *IDENTITY, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout


def raybone(package: Path, *words: str) -> str:
    """What the raybone of a folder prints, called from elsewhere."""
    command = [sys.executable, "-m", "raybone", *words]
    own = {**os.environ, "PYTHONPATH": str(package)}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=own, cwd=package.parent
    ).stdout


def build(source: Path, kind: str) -> Path:
    """A wheel or sdist of a folder, by its build backend and without an index."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(source / 'dist')!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (made,) = (source / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as one commit of a repository of its own."""
    folder = tmp_path_factory.mktemp("packaging") / "checkout"
    for name in BUILT_OF:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder)
    (folder / ".gitignore").write_text("__pycache__/\n*.egg-info/\nbuild/\ndist/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All")
    return folder


@pytest.fixture(scope="module")
def wheel_file(checkout: Path) -> Path:
    """A wheel of it."""
    file = build(checkout, "wheel")
    shutil.rmtree(checkout / "build")
    return file


@pytest.fixture(scope="module")
def wheel(wheel_file: Path, checkout: Path) -> Path:
    """The wheel, unpacked as pip would."""
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(checkout.parent / "site")
    return checkout.parent / "site"


def test_a_wheel_says_the_commit_that_it_was_built_of(checkout: Path, wheel: Path) -> None:
    expected = f"{RELEASE}+g{git(checkout, 'rev-parse', '--short=12', 'HEAD').strip()}"
    assert raybone(wheel, "--version") == f"raybone {expected}\n"
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    assert f"\nVersion: {expected}\n" in metadata.read_text()


def test_a_checkout_says_its_commit_and_whether_it_differs(checkout: Path) -> None:
    assert re.fullmatch(f"raybone {COMMIT}\n", raybone(checkout, "--version"))
    readme = (checkout / "README.md").read_text()
    (checkout / "README.md").write_text("other")
    try:
        assert re.fullmatch(rf"raybone {COMMIT}\.dirty\n", raybone(checkout, "--version"))
    finally:
        (checkout / "README.md").write_text(readme)


def test_a_source_archive_and_sources_without_git_say_what_they_know(
    checkout: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        checkout, tmp_path / "source", ignore=shutil.ignore_patterns("dist", "*.egg-info")
    )
    archive = build(tmp_path / "source", "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert re.fullmatch(f"raybone {COMMIT}\n", raybone(unpacked, "--version"))
    assert {f.stem for f in (unpacked / "jobs").glob("*.yaml")} == set(examples())
    (unpacked / "raybone" / "version.txt").unlink()
    assert raybone(unpacked, "--version") == f"raybone {RELEASE}+unknown\n"


def test_the_image_is_built_of_a_version_and_not_without_one() -> None:
    dockerfile = (ROOT / "k8s" / "image" / "Dockerfile").read_text()
    assert '--build-arg VERSION="$(python3 -m raybone.version)"' in dockerfile
    said = [sys.executable, "-m", "raybone.version"]
    output = subprocess.run(said, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output == f"{version()}\n"
    (guard,) = re.findall(r'^RUN (: "\$\{VERSION:\?.*) \\$', dockerfile, re.M)
    lone = subprocess.run(["bash", "-euc", guard], capture_output=True, text=True, env={})
    assert lone.returncode
    assert "--build-arg" in lone.stderr
    assert not subprocess.run(["bash", "-euc", guard], env={"VERSION": "1"}).returncode


def test_a_wheel_holds_every_study_of_jobs(wheel: Path) -> None:
    listed = raybone(wheel, "example").splitlines()
    assert [line.split()[0] for line in listed] == list(examples())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in listed)
    assert (wheel / "raybone" / "py.typed").is_file()


def test_an_example_is_printed_as_it_is_and_an_unknown_one_lists_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["example", "smoke"]) == 0
    printed = capsys.readouterr().out
    assert printed == (ROOT / "jobs" / "smoke.yaml").read_text()
    assert yaml.safe_load(printed)["name"] == "smoke"
    assert main(["example", "smok"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("raybone: example: must be one of bccd_models, ")
    assert line.endswith(", got 'smok'; choose one")


def test_examples_that_messages_name_are_there() -> None:
    files = [*(ROOT / "raybone").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name
        for file in files
        for name in re.findall(r"`?raybone example ([a-z]\w+)", file.read_text())
    }
    assert "smoke" in named
    assert named <= set(examples())


def imported(source: str) -> set[str]:
    """Top names of all absolute imports of a source, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).split(".")[0])
    return names


def plain(name: str) -> str:
    """A distribution's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", name)[0]).lower()


def test_every_module_that_is_imported_is_declared_and_the_other_way_round() -> None:
    sources = [file.read_text() for file in (ROOT / "raybone").rglob("*.py")]
    names = set().union(*map(imported, sources)) - sys.stdlib_module_names - {"raybone"}
    homes = packages_distributions()
    used = {plain(home) for name in names for home in homes.get(name, [f"nothing for {name}"])}
    extras = PROJECT["optional-dependencies"]
    optional = {plain(name) for extra in extras.keys() - {"dev"} for name in extras[extra]}
    # pydicom finds its decoders by itself; onnx and onnxscript are those of torch's export.
    found_by_others = {"pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"}
    declared = {plain(name) for name in PROJECT["dependencies"]}
    assert used - declared - optional == set()
    assert declared - used == found_by_others


def test_an_import_that_is_not_declared_is_seen() -> None:
    assert imported(
        "def f():\n    import grpc.aio, os\n    from yaml import x\n    from . import y"
    ) == {
        "grpc",
        "os",
        "yaml",
    }
    assert {
        plain("ray[default,train]==2.60.0"),
        plain("PyYAML>=6"),
        plain("vl_convert.python"),
    } == {
        "ray",
        "pyyaml",
        "vl-convert-python",
    }


@pytest.fixture(scope="module")
def installed(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a second environment that raybone's wheel is installed into; what it needs is
    taken from this one.
    """
    place = tmp_path_factory.mktemp("second") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    (site,) = place.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps"]
    subprocess.run([sys.executable, *install, "--quiet", str(wheel_file)], check=True)
    return python


def test_the_readme_opens_with_lines_that_run_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    first = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    language, code = first
    assert language == "python"
    for long, short in SMALL.items():
        assert long in code
        code = code.replace(long, short)
    phantom(tmp_path / "scans", 4, height=128)
    phantom(tmp_path / "new_scans", 1, seed=1, height=128)
    code += "print(rb.__file__)\nprint(results.reason, *results.leaderboard()['rank'])\n"
    (tmp_path / "ours.py").write_text(code)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed), "ours.py"]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=own
    )
    assert run.returncode == 0, run.stderr
    *_, file, last = run.stdout.splitlines()
    assert Path(file).is_relative_to(installed.parents[1])
    assert last == "complete 1"
    assert run.stdout.count("new_scans/") == 2
    assert (tmp_path / "ours.html").is_file()


# Libraries whose types are a matter of minutes, and not raybone's.
HEAVY = ("torch", "torchvision", "ray", "pandas", "numpy", "matplotlib", "optuna", "ultralytics")
HEAVY += ("monai", "altair", "scipy", "pydicom", "sklearn")
CLIENT = """
from pathlib import Path

import raybone as rb

dataset = rb.prepare(Path("scans"), "ds", folds=3, steps=["body_range"])
study: rb.Study = rb.Study(dataset=dataset, model="unet", space={"lr0": rb.uniform(0, 1)})
results: rb.Results = rb.search(study, Path("out"), backend="local")
ranks: list[float] = results.leaderboard()["rank"].tolist()
bundle: rb.Bundle = results.refit("bundle")
boxes: list[tuple[float, ...]] = [f.box for _, found in bundle.predict("new") for f in found]
version: str = rb.__version__
problems: list[str] = rb.models.check(rb.models.load("unet"), steps=9)
"""


def test_type_checkers_read_the_api_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    wrong = 'import raybone as rb\nrb.prepare("a", "b", fold=3)\nrb.serach\n'
    (tmp_path / "wrong.py").write_text(wrong)
    heavy = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in HEAVY)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n{heavy}")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed)]
    own = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")
    }
    run = subprocess.run(
        [*command, "client.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=own,
    )
    assert "client.py" not in run.stdout, run.stdout
    assert 'wrong.py:2: error: Unexpected keyword argument "fold" for "prepare"' in run.stdout
    assert 'wrong.py:3: error: Module has no attribute "serach"' in run.stdout
