"""One namespace for the run, as docs/kubernetes.md sets up a site; it is deleted at the end.

``RAYBONE_IMAGE`` names the image, ``RAYBONE_STORAGE_CLASS`` a class with volumes that several pods
may write to.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubectl import NAMESPACE, build, kubectl, on_the_volume, until


@pytest.fixture(scope="session")
def image() -> str:
    """The image under test."""
    return os.environ["RAYBONE_IMAGE"]


@pytest.fixture(scope="session")
def site(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Namespace, volume, policies, a pod on the volume with a dataset of 12 patients, and the token."""
    folder = build("data", image, tmp_path_factory.mktemp("site"))
    try:
        kubectl("apply", "--kustomize", str(folder))
        token = f"--from-literal=auth_token={secrets.token_hex(32)}"
        kubectl("create", "secret", "generic", "raybone-token", token)
        kubectl("wait", "pod/data", "--for=condition=Ready", "--timeout=600s")
        on_the_volume("raybone", "phantom", "data/phantom", "--patients", "12")
        on_the_volume("raybone", "prepare", "data/phantom", "data/smoke", "--folds", "3")
        yield folder
    finally:
        kubectl(
            "delete", "rayjobs,rayclusters", "--all", "--wait=true", "--timeout=120s", check=False
        )
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s", check=False)
        until(
            "the namespace is gone",
            lambda: "NotFound" in kubectl("get", "namespace", NAMESPACE, check=False),
        )
