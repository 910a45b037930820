"""The way into a Ray cluster: its token, and one clear line where nothing answers or the token does
not fit.

The imports of Ray's private modules here pay for that: by ``ray.init`` alone, a wrong token takes
20 s and a warning in each to "Failed to connect", and where nothing listens it waits over 200 s; an
address that is given never turns token authentication on.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raybone.errors import WrongInput
from raybone.storage import plain_url

TALKERS = (
    "ray._private.authentication.authentication_token_setup",
    "ray.dashboard.modules.dashboard_sdk",
    JobSubmissionClient.__module__,
)
PATIENCE = 10.0  # seconds for a first answer
TOKEN = (
    "the cluster's token goes into RAY_AUTH_TOKEN or ~/.ray/auth_token, or its file's name into "
    "RAY_AUTH_TOKEN_PATH"
)


def use_token() -> str:
    """Send the token that is set up here, if any; Ray by itself does so only under
    RAY_AUTH_MODE=token.

    Returns:
        Where the token is from, never the token.
    Raises:
        WrongInput: RAY_AUTH_MODE or RAY_AUTH_TOKEN_PATH promise a token that is not there.
    """
    for talker in TALKERS:
        logging.getLogger(talker).setLevel(logging.ERROR)
    try:
        wanted = maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except AuthenticationError:
        raise WrongInput(
            "RAY_AUTH_TOKEN_PATH: must name a file with the cluster's token, got "
            f"{os.environ.get('RAY_AUTH_TOKEN_PATH', '')!r}; mend it"
        ) from None
    named = [n for n in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(n)]
    if wanted and not named and not (Path.home() / ".ray" / "auth_token").is_file():
        raise WrongInput(f"RAY_AUTH_MODE=token: needs a token, but none is here; {TOKEN}")
    return (named or ["~/.ray/auth_token"])[0] if wanted else "none"


def check(address: str) -> None:
    """See that a Ray head answers at an address as ``ray.init`` takes it, and takes our token.

    Raises:
        WrongInput: it does not.
    """
    source = use_token()
    if address in ("auto", "local") or "://" in address:
        return
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=PATIENCE)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise _refused(address, source) from None
        raise ConnectionError(f"{error.code().name}: {error.details()}") from None


def job_client(address: str) -> JobSubmissionClient:
    """A client of the job server at a URL; RAY_ADDRESS, which Ray would prefer, has no say.

    Raises:
        WrongInput: the URL is none, nothing answers there, it is not Ray, or it refuses our token.
    """
    source, wrong = (
        use_token(),
        f"--address {plain_url(address)}: must be the URL of a Ray dashboard such as "
        "http://head:8265, but",
    )
    if not address.startswith(
        ("http://", "https://")
    ):  # Ray would import a module of any other scheme's name
        raise WrongInput(f"{wrong} is no http or https URL; mend it")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    try:
        with contextlib.suppress(
            HTTPError
        ):  # something answers: Ray's client knows what its status means
            urlopen(f"{address.rstrip('/')}/api/version", timeout=PATIENCE).close()
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise _refused(address, source) from None
    except Exception as error:  # whatever servers that are not Ray provoke
        raise WrongInput(
            f"{wrong}: {' '.join(str(error).split())[:150]}; check the address"
        ) from None


def _refused(address: str, source: str) -> WrongInput:
    mode, asks = os.environ.get("RAY_AUTH_MODE", "token").lower(), "asks for a token, but"
    why = (
        f"{asks} RAY_AUTH_MODE={mode} sends none; unset it"
        if mode != "token"
        else f"{f'{asks} none is here' if source == 'none' else f'refuses the token of {source}'}; "
        f"{TOKEN}"
    )
    return WrongInput(f"--address {address}: the cluster {why}")
