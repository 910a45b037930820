"""Trackers are told what the journal says, once, whether a study runs or has ended."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from event_files import last_of, records_of, scalars_of

from raybone.cli import main
from raybone.errors import MachineFault, WrongInput
from raybone.hpo.journal import Journal
from raybone.results.study_folder import StudyFolder
from raybone.results.trackers import track as tracking
from raybone.results.trackers.track import shown, track
from raybone.run import followers
from raybone.storage import Folder


@pytest.fixture(scope="module")
def done(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two configurations, three folds and two epochs."""
    place = tmp_path_factory.mktemp("tracked")
    study = {
        "name": "tracked",
        "dataset": str(dataset),
        "model": "unet",
        "metric": "dice",
        "epochs": 2,
        "fixed": {"imgsz": 64, "width": 4, "depth": 2},
        "space": {"lr0": {"choice": [0.01, 0.001]}},
        "search": {"trials": 2, "sampler": "grid", "scheduler": "full"},
    }
    (place / "study.yaml").write_text(yaml.safe_dump(study))
    words = ["search", str(place / "study.yaml"), "--out", str(place / "study"), "--local"]
    assert main(words) == 0
    return place / "study"


def epochs(study: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """The journal's epochs by configuration, fold and epoch."""
    return {
        (e["config_id"], e["fold"], e["epoch"]): e
        for e in Journal(Folder(study)).events()
        if e["event"] == "epoch"
    }


def runs(uri: str) -> pd.DataFrame:
    mlflow.set_tracking_uri(uri)
    found = mlflow.search_runs(experiment_names=["tracked"])
    assert isinstance(found, pd.DataFrame)
    return found.set_index("tags.mlflow.runName")


def test_tensorboard_has_each_epoch_at_its_time(done: Path, tmp_path: Path) -> None:
    assert main(["track", str(done), "--to", f"tensorboard:{tmp_path / 'tb'}"]) == 0
    for (config_id, fold, epoch), event in epochs(done).items():
        found = {
            tag: (value, time)
            for tag, step, value, time in scalars_of(tmp_path / f"tb/{config_id}/fold{fold}")
            if step == epoch
        }
        known = {k: v for k, v in event["metrics"].items() if v is not None}
        assert {tag: value for tag, (value, _) in found.items()} == pytest.approx(known, rel=1e-6)
        assert {time for _, time in found.values()} == {event["time"]}
    row = StudyFolder(done).table().iloc[0]
    mean = last_of(tmp_path / f"tb/{row['config_id']}")["dice_mean"]
    assert mean == pytest.approx(row["dice_mean"], abs=1e-6)
    assert main(["track", str(done), "--to", f"tensorboard:{tmp_path / 'tb'}"]) == 2


def test_wandb_has_a_run_a_configuration_and_asks_no_network(done: Path, tmp_path: Path) -> None:
    place = tmp_path / "wb"
    assert main(["track", str(done), "--to", f"wandb:{place}"]) == 0
    seen: dict[str, dict[int, dict[str, float]]] = {}
    for record in records_of(place):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert record.run.project == "tracked"
            name = record.run.display_name
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert config["metric"] == "dice"
            assert config["lr0"] in (0.01, 0.001)
        elif kind == "history":
            items = {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            values = {k: v for k, v in items.items() if not k.startswith("_")}
            seen.setdefault(name, {})[int(items["_step"])] = values
    known: dict[str, dict[int, dict[str, float]]] = {}
    for (config_id, fold, epoch), event in epochs(done).items():
        values = known.setdefault(config_id, {}).setdefault(epoch, {})
        metrics = {k: v for k, v in event["metrics"].items() if v is not None}
        values |= {
            f"fold{fold}/{k}": v for k, v in {**metrics, "seconds": event["seconds"]}.items()
        }
    assert seen.keys() == known.keys()
    for config_id, steps in known.items():
        assert seen[config_id].keys() == steps.keys()
        for step, values in steps.items():
            assert seen[config_id][step] == pytest.approx(values, rel=1e-9)
    assert main(["track", str(done), "--to", f"wandb:{place}"]) == 2


def test_a_study_names_its_trackers_and_one_that_is_down_stops_nothing(
    study: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = [
        f"tensorboard:{tmp_path / 'tb'}",
        f"wandb:{tmp_path / 'wb'}",
        "mlflow:sqlite:////proc/no.db",
    ]
    path, out = tmp_path / "study.yaml", str(tmp_path / "run")
    fast = {"trials": 1, "scheduler": "full"}
    path.write_text(yaml.safe_dump({**study, "epochs": 1, "search": fast, "track": places[:2]}))
    assert main(["search", str(path), "--out", out, "--local"]) == 0
    assert len(list(scalars_of(tmp_path / "tb/c000/fold0"))) > 1
    assert any(r.WhichOneof("record_type") == "exit" for r in records_of(tmp_path / "wb"))
    # Resumed with other trackers: the folder exists, and is not written to; the last one is down
    for trials, place, patience in ((2, places[0], 60.0), (3, places[2], 1.0)):
        more = {"search": {**fast, "trials": trials}, "track": [place]}
        path.write_text(yaml.safe_dump({**study, "epochs": 1, **more}))
        monkeypatch.setattr(followers, "PATIENCE", patience)
        assert main(["search", str(path), "--out", out, "--local"]) == 0
    assert (tmp_path / "tb-2/c001/fold0").is_dir()
    assert not (tmp_path / "tb/c001").exists()
    assert "mlflow:sqlite:////proc/no.db was not told all" in capfd.readouterr().err


def test_a_tracker_with_a_password_is_refused(
    study: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    for place in ("mlflow:http://me:secret@host", "neptune:x", "mlflow"):
        path.write_text(yaml.safe_dump({**study, "track": [place]}))
        assert main(["search", str(path), "--out", str(tmp_path / "run"), "--local"]) == 2
        said = capsys.readouterr().err
        assert "track" in said
        assert "secret" not in said


def test_mlflow_has_folds_below_configurations_below_the_study(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/m.db"
    assert main(["track", str(done), "--to", f"mlflow:{uri}"]) == 0
    table, found = StudyFolder(done).table(), runs(uri)
    assert sorted(found.index) == sorted(
        [
            "tracked",
            *(c for c in table["config_id"]),
            *(f"{c}/fold{k}" for c in table["config_id"] for k in range(3)),
        ]
    )
    assert set(found["status"]) == {"FINISHED"}
    id_of = found["run_id"].to_dict()
    for _, row in table.iterrows():
        own = found.loc[row["config_id"]]
        assert own["tags.mlflow.parentRunId"] == id_of["tracked"]
        assert own["metrics.dice_mean"] == pytest.approx(row["dice_mean"], abs=1e-6)
        assert float(own["params.lr0"]) == row["cfg.lr0"]
        fold = found.loc[f"{row['config_id']}/fold1"]
        assert fold["tags.mlflow.parentRunId"] == id_of[row["config_id"]]
    client = mlflow.MlflowClient(uri)
    for (config_id, fold, epoch), event in epochs(done).items():
        history = client.get_metric_history(id_of[f"{config_id}/fold{fold}"], "dice")
        (point,) = [m for m in history if m.step == epoch]
        assert (point.value, point.timestamp) == (
            pytest.approx(event["metrics"]["dice"]),
            round(event["time"] * 1000),
        )
    names = {f.path for f in client.list_artifacts(id_of["tracked"])}
    assert names == {"leaderboard.csv", "report.html"}
    page = Path(client.download_artifacts(id_of["tracked"], "report.html", str(tmp_path)))
    text = page.read_text()
    assert "vega" in text
    assert "data:image/png" not in text  # no pixel of a scan leaves for a tracker
    assert not (tmp_path / "mlruns").exists()


def test_the_same_command_sends_what_is_new_and_nothing_twice(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker fails at one call after the other, and is asked again."""
    uri, calls, sent = f"sqlite:///{tmp_path}/m.db", [0], list[tuple[str, str, int]]()
    real = mlflow.MlflowClient.log_batch

    def falters(self: Any, run: str, metrics: Any = (), **more: Any) -> Any:
        calls[0] += 1
        if calls[0] % 3 == 1:
            raise mlflow.exceptions.MlflowException("down")
        sent.extend((run, m.key, m.step) for m in metrics if m.key == "dice")
        return real(self, run, metrics=metrics, **more)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", falters)
    with pytest.raises(MachineFault, match="must answer, but MlflowException: down"):
        track(str(done), f"mlflow:{uri}")
    monkeypatch.setattr(tracking, "EVERY", 0.0)
    told = list[str]()
    assert track(str(done), f"mlflow:{uri}", True, told.append) == len(epochs(done)) == 12
    assert len(told) > 5
    calls[0] = 1
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", real)
    track(str(done), f"mlflow:{uri}")
    found = runs(uri)
    assert len(found) == 9
    assert len(sent) == len(set(sent)) == 12
    configurations = found[~found.index.str.contains("/") & (found.index != "tracked")]
    assert sorted(configurations["params.lr0"].astype(float)) == [0.001, 0.01]


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that has no time."""

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_does_not_answer_is_one_line_without_its_password(
    done: Path, refusing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["track", str(done), "--to", f"mlflow:http://me:secret@{refusing}"]) == 2
    assert "secret" not in capsys.readouterr().err
    assert main(["track", str(done), "--to", f"mlflow:http://{refusing}"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "the same command goes on from there" in said


@pytest.mark.parametrize(
    "to", ["neptune:x", "mlflow:", "mlflow:./mlruns", "mlflow:sqlite:///", "nothing"]
)
def test_what_is_no_tracker_is_refused(to: str, done: Path) -> None:
    with pytest.raises(WrongInput, match="--to"):
        track(str(done), to)


def test_what_is_no_database_is_one_line(done: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database " * 100)
    with pytest.raises(MachineFault, match="must answer, but"):
        track(str(done), f"mlflow:sqlite:///{tmp_path}/notes.txt")


def test_addresses_are_shown_without_passwords() -> None:
    assert shown("mlflow:https://a:b@host/x") == "mlflow:https://host/x"
    assert shown("http://me:p@ss@host") == "http://host"
