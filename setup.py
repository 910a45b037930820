"""What a wheel or a source archive takes from a checkout beside the package: version and studies.

All else is in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


class Build(build_py):
    """A built package says its version without git, and holds the studies of jobs/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout's are beside it
            return
        package = Path(self.build_lib, "raybone")
        (package / "jobs").mkdir(exist_ok=True)
        for study in Path("jobs").glob("*.yaml"):
            self.copy_file(str(study), str(package / "jobs"))
        (package / "version.txt").write_text(self.distribution.get_version())


class Archive(sdist):
    """A source archive says its version without git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        Path(base_dir, "raybone", "version.txt").write_text(self.distribution.get_version())


setup(cmdclass={"build_py": Build, "sdist": Archive})
