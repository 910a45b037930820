"""A cluster without nodes: a search waits for those it asks Ray's autoscaler for; they go when it
has ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from raybone.run.local import search as search_locally
from raybone.study.files import parse_study
from tests.chaos.harness import Cluster, Driver, events, table, until


def test_an_autoscaler_adds_the_nodes_that_a_search_can_use_and_takes_them_back(
    study: dict[str, Any], tmp_path: Path
) -> None:
    study = {**study, "epochs": 12, "fixed": {**study["fixed"], "imgsz": 256}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    search_locally(parse_study(study), str(tmp_path / "whole"))
    cluster, out = Cluster(0, autoscaled=2), tmp_path / "out"

    def nodes() -> int:
        return sum(p.name() == "raylet" for p in cluster.processes()) - 1

    try:
        until(lambda: nodes() == 0, wanted="the head")
        driver = Driver(cluster, tmp_path / "study.yaml", out)
        until(lambda: nodes() == 2 or driver.process.poll() is not None, 120, "two nodes")
        assert driver.wait() == 0
        assert "waiting up to 3 minutes for nodes" in driver.log.read_text()
        assert max(e["slots"] for e in events(out) if "slots" in e) == 2
        pd.testing.assert_frame_equal(table(out), table(tmp_path / "whole"))
        until(lambda: nodes() == 0, 120, "the end of idle nodes")
    finally:
        cluster.end()
