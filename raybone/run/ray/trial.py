"""A configuration in the eyes of Tune: its hyper-parameters, and what each rung gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raybone.run.ray.hub import find


class Trial(tune.Trainable):
    """Waits for the slots to take its configuration to the next rung, and reports what the hub says
    of that; a step is a rung.

    It holds nothing, so a process is used for one configuration after another, and one that was
    killed is replaced.
    """

    def setup(self, config: dict[str, Any], hub: str = "") -> None:  # noqa: ARG002
        """Find the hub."""
        self._hub = find(hub)

    def step(self) -> dict[str, Any]:
        """The metrics of the rung, means over its folds, and what ``Hub.rung`` says more."""
        return dict(ray.get(self._hub.rung.remote(self.config["config_id"])))

    def reset_config(self, new_config: dict[str, Any]) -> bool:  # noqa: ARG002
        """Whether this process can take another configuration: always."""
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune wants one for a pause; all that matters is in last.pt and the journal."""
        (Path(checkpoint_dir) / "rung.json").write_text(json.dumps({"rung": self.iteration}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""
