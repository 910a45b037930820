"""A job left by Ctrl-C, stopped through the study folder, and submitted again: it resumes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from heads import ended, running_head, wait_for

from raybone.hpo.journal import Journal
from raybone.storage import Folder


def test_a_followed_job_outlives_ctrl_c_stops_from_elsewhere_and_resumes(
    study: dict[str, Any], tmp_path: Path
) -> None:
    out, file = tmp_path / "st", tmp_path / "s.yaml"
    file.write_text(
        yaml.safe_dump({**study, "epochs": 12, "search": {**study["search"], "trials": 1}})
    )
    journal = out / "journal" / "000001.jsonl"
    with running_head() as head:
        submit = ("submit", file, "--address", head.url, "--out", out, "--follow")
        first = head.raybone(*submit)
        wait_for(lambda: journal.exists() and '"epoch"' in journal.read_text(), first)
        first.send_signal(signal.SIGINT)
        code, said = ended(first)
        assert code == 1, said
        assert said.splitlines()[-1].endswith(
            "no longer followed, but still at work; `raybone stop` ends it"
        )
        assert ended(head.raybone("stop", f"file://{out}/", RAY_AUTH_TOKEN=""))[0] == 0
        code, said = ended(head.raybone("logs", out, "--follow", RAY_AUTH_TOKEN=""))
        assert "the search ends: stopped by `raybone stop`" in said.splitlines()[-1]
        code = 2
        while code == 2:  # the first job is on its last lines
            code, said = ended(head.raybone(*submit))
            assert code == 0 or "one job at a time" in said, said
        assert said.startswith("raybone-tiny-")
        assert "-2: submitted" in said
    assert list(pd.read_csv(out / "leaderboard.csv")["state"]) == ["complete"]
    epochs = [
        (e["fold"], e["epoch"]) for e in Journal(Folder(out)).events() if e["event"] == "epoch"
    ]
    assert len(epochs) == len(set(epochs)) == 36
