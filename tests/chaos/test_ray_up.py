"""`ray up` with the file of docs/ makes a cluster of machines that are reached by ssh alone, and a
search runs on it, as the file's own words say.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hosts import NETWORK, Host, hosts, ip, wait_for

from raybone.hpo.journal import Journal
from raybone.storage import Folder

DOCS = Path(__file__).parents[2] / "docs"
NEEDED = ("/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync")
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
NODES = """import ray; ray.init(address="auto")
print(sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))"""


def machine(host: Host, key: Path) -> None:
    """A home of its own, and an ssh server that lets the key's owner in."""
    # Without a way out, Ray takes the address that /etc/hosts gives the machine's name.
    ip("-n", host.name, "route", "add", "default", "via", f"{NETWORK}.254")
    home = host.place / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text(TOKEN)
    (home / ".ray/auth_token").chmod(0o600)
    threads = "export OMP_NUM_THREADS=1"
    (home / ".profile").write_text(f"export PATH={BIN}:$PATH; {threads}\n")
    (host.place / "passwd").write_text(
        Path("/etc/passwd").read_text().replace(":/root:", f":{home}:")
    )
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host.place / "host_key"], check=True
    )
    settings = {
        "HostKey": host.place / "host_key",
        "AuthorizedKeysFile": key.with_suffix(".pub"),
        "PidFile": "none",
        "StrictModes": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (host.place / "sshd").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    commands = (
        "mkdir -p /run/sshd",
        f"mount --bind {host.place}/passwd /etc/passwd",
        f"exec /usr/sbin/sshd -D -e -f {host.place}/sshd",
    )
    host.run("sh", "-ec", "; ".join(commands), out="sshd.log")
    wait_for(lambda: "listening" in (host.place / "sshd.log").read_text(), 20)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Host]]:
    """Three machines; from the third one the others are to become a cluster."""
    if missing := [tool for tool in NEEDED if shutil.which(tool) is None]:
        pytest.skip(f"machines reached by ssh need {', '.join(missing)}")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with hosts(3, tmp_path) as made:
        for host in made:
            machine(host, key)
        yield made


def test_ray_up_makes_a_cluster_that_a_search_uses(
    machines: list[Host], study: dict[str, Any], tmp_path: Path
) -> None:
    head, far, desk = machines
    config = yaml.safe_load((DOCS / "ray-up.yaml").read_text())
    config["provider"] |= {"head_ip": head.address, "worker_ips": [far.address]}
    config |= {"min_workers": 1, "max_workers": 1}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(tmp_path / "key")}
    file, place = tmp_path / "ray-up.yaml", tmp_path / "ours"
    file.write_text(yaml.safe_dump(config))
    # More than a machine has side by side: two runs of two CPUs each.
    study = {**study, "epochs": 3, "resources": {"cpus": os.cpu_count() or 1}}
    study["search"] = {**study["search"], "trials": 2, "scheduler": "full"}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(study))

    def at_desk(*words: str) -> str:
        """What a command says that is given there."""
        out = f"{words[1]}.log"
        with_home = ["env", "-u", "RAY_AUTH_MODE", f"HOME={desk.place}/home", f"{BIN}/{words[0]}"]
        done = desk.run(*with_home, *words[1:], out=out).wait(400)
        said = (desk.place / out).read_text(errors="replace")
        assert done == 0, said[-3000:]
        return said

    at_desk("ray", "up", "--yes", "--no-config-cache", str(file))
    seen = shlex.join(["env", "RAY_AUTH_MODE=token", f"{BIN}/python", "-c", NODES])
    both = str(sorted([head.address, far.address]))
    wait_for(lambda: both in at_desk("ray", "exec", "--no-config-cache", str(file), seen), 120)
    search = ["raybone", "search", str(tmp_path / "ours.yaml"), "--out", str(place)]
    search_line = shlex.join([*search, "--address", "auto"])
    at_desk("ray", "exec", "--no-config-cache", str(file), search_line)
    began = next(e for e in Journal(Folder(place)).events() if e["event"] == "start")
    assert began["slots"] == 2
    board = pd.read_csv(place / "leaderboard.csv")
    assert board["state"].tolist() == ["complete", "complete"]
    at_desk("ray", "down", "--yes", str(file))
    wait_for(lambda: not head.processes() + far.processes(), 60)
