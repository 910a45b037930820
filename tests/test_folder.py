"""Storage that is away for a while."""

from __future__ import annotations

import errno

import pytest

from raybone.storage import patiently

SLOW = (
    "When completing multipart upload for key 'k' in bucket 'b': AWS Error SLOW_DOWN during "
    "UploadPart operation"
)
DENIED = (
    "When reading information for key 'k' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject "
    "operation"
)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.EIO, "Input/output error"), 3),
        (OSError(SLOW), 3),
        (OSError(errno.ENOSPC, "No space"), 1),
        (OSError(DENIED), 1),
        (FileNotFoundError("k"), 1),
    ],
)
def test_what_is_away_is_tried_again_and_what_is_wrong_is_not(
    monkeypatch: pytest.MonkeyPatch, error: OSError, tries: int
) -> None:
    tried: list[int] = []
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def operation() -> str:
        tried.append(1)
        if len(tried) < 3:
            raise error
        return "done"

    if tries == 1:
        with pytest.raises(OSError):
            patiently(operation)
    else:
        assert patiently(operation) == "done"
    assert len(tried) == tries
