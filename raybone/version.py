"""Which raybone this is: its release, and the commit that its code is of."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

RELEASE = "0.1.0"
# Written by setup.py and by `raybone submit` for code that leaves its checkout.
FILE = "version.txt"
PACKAGE = Path(__file__).parent
DESCRIBE = (
    "--no-optional-locks",
    "describe",
    "--always",
    "--exclude=*",
    "--abbrev=12",
    "--dirty=.dirty",
)


@cache
def version() -> str:
    """Returns release and commit, such as ``0.1.0+g1a2b3c4d5e6f`` (PEP 440).

    It ends in ``.dirty`` where a tracked file is not as in that commit. It is ``0.1.0+unknown`` for
    sources that came without git.
    """
    checkout, file = PACKAGE.parent, PACKAGE / FILE
    if (checkout / ".git").exists():
        return f"{RELEASE}+{_commit(checkout)}"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else f"{RELEASE}+unknown"


def _commit(checkout: Path) -> str:
    # Named whole, as a git that runs us as its hook has another repository in GIT_DIR.
    where = f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}"
    try:
        said = subprocess.run(
            ["git", *where, *DESCRIBE], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of another user
        return "unknown"
    return f"g{said.strip()}"


if __name__ == "__main__":
    print(version())
