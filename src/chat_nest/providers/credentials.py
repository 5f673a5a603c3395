"""Credentials that a cloud's own library finds and renews: AWS's signature, and Google's access tokens.

botocore (the extra `aws`) and google-auth (the extra `google`) look where their users keep them: environment variables,
profile files, the machine's or container's role, Application Default Credentials. Their calls block, so that they run
in a thread, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

from chat_nest.core.errors import UpstreamAuth
from chat_nest.core.extras import explain

log = logging.getLogger("chat_nest.upstream")

Cloud = Literal["aws", "google"]

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
RETRY_SECONDS: Final = 5.0
"""Seconds before a new attempt after a failure."""
_BEDROCK = re.compile(r"(?:^|\.)(bedrock-runtime|bedrock-mantle)(?:-fips)?\.([a-z0-9-]+)\.")
_SERVICES: Final = {"bedrock-runtime": "bedrock", "bedrock-mantle": "bedrock-mantle"}
"""The signed service, by endpoint: https://docs.aws.amazon.com/bedrock/latest/userguide/bedrock-mantle.html."""
_GOOGLE = re.compile(r"(?:[a-z0-9-]+\.)*googleapis\.com")


class Credentials(Protocol):
    async def headers(self, method: str, url: str, content_type: str, body: bytes) -> Mapping[str, str]:
        """Return the headers that authenticate a request. Raises UpstreamAuth if there are no credentials."""
        ...


def credentials_for(cloud: str, base_url: str) -> Credentials:
    """Return the credentials of a cloud.

    Raises ValueError for a URL of another host, or if the library is not installed.
    """
    host = urlsplit(base_url).hostname or ""
    if cloud == "aws":
        found = _BEDROCK.search(host)
        if found is None:
            raise ValueError("credentials need a base_url of Bedrock, which names its region")
        return AWSCredentials(_SERVICES[found[1]], found[2])
    if cloud == "google":
        if not _GOOGLE.fullmatch(host):
            raise ValueError("credentials need a base_url of googleapis.com: nothing else may see the token")
        return GoogleCredentials()
    raise ValueError("credentials must be aws or google")


class AWSCredentials:
    """Signs each request with Signature Version 4, with the credentials that botocore finds.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html. `service` and `region` are part of the
    signature. Raises ValueError without botocore.
    """

    def __init__(self, service: str, region: str) -> None:
        self._service = service
        self._region = region
        self._auth = _library("botocore.auth", "aws")
        self._request = _library("botocore.awsrequest", "aws")
        session = _library("botocore.session", "aws").Session()
        self._found = _Found(session.get_credentials, lambda _: True)

    async def headers(self, method: str, url: str, content_type: str, body: bytes) -> Mapping[str, str]:
        """See Credentials."""
        frozen = await self._frozen(await self._found.get())
        fields = {"content-type": content_type} if content_type else {}
        request = self._request.AWSRequest(method=method, url=url, data=body, headers=fields)
        self._auth.SigV4Auth(frozen, self._service, self._region).add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}

    async def _frozen(self, found: Any) -> Any:
        """Return the current credentials. Those that expire are renewed a quarter of an hour before."""
        if not hasattr(found, "refresh_needed") or not found.refresh_needed():
            return found.get_frozen_credentials()
        try:
            return await asyncio.to_thread(found.get_frozen_credentials)
        except Exception as error:
            log.error("the credentials for the provider can't be renewed: %s", type(error).__name__)  # noqa: TRY400
        raise _no_credentials()


class GoogleCredentials:
    """Sends the access token of Google's Application Default Credentials, renewed by google-auth before it expires.

    https://cloud.google.com/docs/authentication/application-default-credentials. Raises ValueError without google-auth.
    """

    def __init__(self) -> None:
        self._google = _library("google.auth", "google")
        pool = _library("urllib3", "google").PoolManager()
        self._request = _library("google.auth.transport.urllib3", "google").Request(pool)
        self._credentials: Any = None
        self._found = _Found(self._renewed, lambda found: bool(found.valid))

    async def headers(self, method: str, url: str, content_type: str, body: bytes) -> Mapping[str, str]:  # noqa: ARG002
        """See Credentials."""
        return {"authorization": f"Bearer {(await self._found.get()).token}"}

    def _renewed(self) -> Any:
        if self._credentials is None:
            self._credentials, _ = self._google.default(scopes=[SCOPE], request=self._request)
        try:
            self._credentials.refresh(self._request)
        except Exception:
            expiry: datetime | None = self._credentials.expiry  # in UTC, without a zone
            if expiry is None or expiry <= datetime.now(UTC).replace(tzinfo=None):
                raise
        return self._credentials


class _Found:
    """The result of `find`, while it is `fresh`. `find` runs in a thread; concurrent callers wait for the same call."""

    def __init__(self, find: Callable[[], Any], fresh: Callable[[Any], bool]) -> None:
        self._find = find
        self._fresh = fresh
        self._found: Any = None
        self._finding: asyncio.Task[None] | None = None
        self._failed_at: float | None = None

    async def get(self) -> Any:
        """Return the result. Raises UpstreamAuth; after a failure for RETRY_SECONDS without another attempt."""
        if self._found is None or not self._fresh(self._found):
            loop = asyncio.get_running_loop()
            if self._failed_at is not None and 0 <= loop.time() - self._failed_at < RETRY_SECONDS:
                raise _no_credentials()
            if self._finding is None or self._finding.done() or self._finding.get_loop() is not loop:
                self._finding = loop.create_task(self._look())
            await asyncio.shield(self._finding)  # other callers may wait for it, too
            if self._found is None:
                raise _no_credentials()
        return self._found

    async def _look(self) -> None:
        try:
            self._found, why = await asyncio.to_thread(self._find), "none were found"
        except Exception as error:  # any exception of a library; its text may hold a secret
            self._found, why = None, type(error).__name__
        self._failed_at = asyncio.get_running_loop().time() if self._found is None else None
        if self._found is None:
            log.error("no credentials for the provider: %s", why)


def _no_credentials() -> UpstreamAuth:
    return UpstreamAuth("This server has no credentials for the model provider", spent_nothing=True)


def _library(name: str, extra: str) -> Any:
    try:
        return import_module(name)  # imported here: only users of the cloud need it
    except ImportError as error:
        raise ValueError(explain(f'credentials "{extra}" need', extra, error)) from None
