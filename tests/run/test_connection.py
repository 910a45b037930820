"""A Ray of this machine is its user's alone, and starts wherever there is a folder with a short
name.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import ray, raybone.run.ray.connection as c
from raybone.errors import WrongInput
short, c.SHORT = c.SHORT, ("/nowhere",)
try:
    with c.connection(None):
        print("started")
except WrongInput as error:
    print(error)
c.SHORT = short
with c.connection(None):
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    input()
"""


def test_a_long_tmpdir_is_no_hindrance_and_the_folder_is_closed_to_others(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        env={"TMPDIR": str(long), "HOME": str(tmp_path)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == (
            f"TMPDIR {long}: must be a name of at most 24 bytes, as a local Ray has "
            "sockets below it, and /nowhere cannot be written; set TMPDIR to a "
            "shorter one\n"
        )
        session = Path(process.stdout.readline().strip())
        modes = [
            place.stat().st_mode & 0o777
            for place in session.parents
            if place.name.startswith("raybone-")
        ]
        process.communicate("\n")
    assert modes == [0o700]
    assert process.returncode == 0
    assert not session.parent.parent.exists()
