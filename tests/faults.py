"""Kill -9 processes of a running study."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import psutil

from raybone.hpo.journal import Journal
from raybone.storage import Folder

# Ray calls an actor by its class while it waits, and by what tune.with_resources made of it at work.
TRIAL, WORKER = ("ray::Trial", "ray::ResourceTrainable"), ("ray::RayTrainWorker",)


def epochs_of(out: Path) -> list[tuple[str, int, int]]:
    """Finished fold epochs in the journal, in order."""
    return [
        (e["config_id"], e["fold"], e["epoch"])
        for e in Journal(Folder(out)).events()
        if e["event"] == "epoch"
    ]


class Killer:
    """A thread that waits for numbers of epochs, and at each kills a process of this one's Ray with
    such a title.
    """

    def __init__(self, out: Path, *plan: tuple[int, tuple[str, ...]]) -> None:
        self.out, self.plan, self.killed = out, plan, list[int]()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def all_killed(self) -> bool:
        """Whether each has found its process."""
        self.thread.join(10)
        return len(self.killed) == len(self.plan)

    def _work(self) -> None:
        for wanted, titles in self.plan:
            while not self._kill(wanted, titles):
                time.sleep(0.1)

    def _kill(self, wanted: int, titles: tuple[str, ...]) -> bool:
        if len(epochs_of(self.out)) < wanted:
            return False
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(titles):
                    process.kill()
                    self.killed.append(process.pid)
                    return True
            except (psutil.NoSuchProcess, IndexError):
                continue
        return False


def unseal(dataset: Path) -> None:
    """Let a test edit a dataset: without seals, as those that were prepared before there were
    any.
    """
    meta = json.loads((dataset / "dataset.json").read_text())
    del meta["sealed"]
    (dataset / "dataset.json").write_text(json.dumps(meta))
