"""s3:// : objects in Amazon S3 and compatible stores."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from hpcimg.errors import (
    BadReference,
    Forbidden,
    HpcimgError,
    NodeError,
    NotFound,
    Unreachable,
    UserError,
)
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.connections import Response
from hpcimg.http.download import Get, download
from hpcimg.http.session import check_status, open_session
from hpcimg.reference import Reference
from hpcimg.sources import aws, objectnames

# Ceph writes tenants before a colon.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")
_VERSION = re.compile(r"versionId=([A-Za-z0-9._~+/=-]{1,1024})")
_AMAZON = re.compile(r"https://s3(?:\.([a-z0-9-]+))?\.(amazonaws\.com(?:\.cn)?)")
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ERROR_MAX = 1 << 16
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_REGION_IN_BODY = re.compile(rb"<Region>\s*([a-z0-9-]{1,64})\s*</Region>")
# A digest of 32 hex digits. With "-" and a number after it, it is that of a multipart upload.
_SHA256 = re.compile(r"[A-Za-z0-9+/]{43}=")
_BAD_KEYS = {
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not match the access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not known there",
}


class Key(NamedTuple):
    """The name of an object: a bucket, an unescaped key, and a version if one is requested."""

    bucket: str
    key: str
    version: str


class Place(NamedTuple):
    """The location of a bucket: an endpoint's address and a region, "" if implied by it."""

    service: str
    region: str

    @property
    def signed_region(self) -> str:
        """The region to sign for."""
        match = _AMAZON.fullmatch(self.service)
        return self.region or (match and match[1]) or "us-east-1"

    def url(self, name: Key) -> str:
        """Return an object's address: at Amazon the bucket is in the host, else in the path."""
        base = f"{self.service}/{quote(name.bucket, safe='')}"
        if match := _AMAZON.fullmatch(self.service):
            region = self.region or match[1]
            host = f"s3.{region}.{match[2]}" if region else f"s3.{match[2]}"
            # Amazon's certificate covers one label before its own name.
            plain = _HOST_LABEL.fullmatch(name.bucket)
            base = f"https://{name.bucket}.{host}" if plain else f"https://{host}/{name.bucket}"
        query = f"?versionId={quote(name.version, safe='')}" if name.version else ""
        return f"{base}/{quote(name.key, safe='/')}{query}"


class OtherRegion(Exception):
    """The bucket is in the named region."""


class Target(NamedTuple):
    """One object at one place: request headers, and the meaning of answers."""

    uri: str
    name: Key
    place: Place
    keys: aws.Keys | None

    @property
    def url(self) -> str:
        """The object's address."""
        return self.place.url(self.name)

    def headers(self, validator: str) -> Mapping[str, str]:
        """Return the headers for a request now, signed if there are keys. Raises MissingTool."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        if self.keys:
            headers = aws.signed(self.url, headers, self.keys, self.place.signed_region)
        return {**headers, "If-None-Match": validator} if validator else headers

    def check(self, response: Response) -> None:
        """Raise the error that an answer stands for, by the error code in its body."""
        status = response.status
        if status < 300:
            return
        body = response.raw.read(_ERROR_MAX, decode_content=False)
        if region := self._other_region(response, body):
            raise OtherRegion(region)
        match = _CODE.search(body)
        code = match[1].decode() if match else ""
        if error := self._explain(status, code):
            raise error
        check_status(response, self.uri)

    def _other_region(self, response: Response, body: bytes) -> str:
        """Return the region that an answer refers to, "" if none or the same."""
        if response.status not in (301, 307, 400):
            return ""
        match = _REGION_IN_BODY.search(body)
        region = response.headers.get("x-amz-bucket-region") or (match[1].decode() if match else "")
        same = self.place.region
        if response.status == 400:  # only the signature was wrong
            same = self.place.signed_region
        return region if _REGION.fullmatch(region) and region != same else ""

    def _explain(self, status: int, code: str) -> HpcimgError | None:
        """Return the error where S3's meaning differs from HTTP's."""
        why = f"the server answered {status} {code}".strip()
        if code == "NoSuchBucket":
            return NotFound(f"there is no bucket {self.name.bucket} for {self.uri}", why=why)
        if code == "RequestTimeTooSkewed":
            return NodeError(
                f"{self.uri} could not be read",
                why="the clock of this node and that of the server are too far apart",
                do="Tell the administrators: the clock of this node has to be set.",
            )
        if code == "InvalidObjectState":
            return UserError(f"{self.uri} is archived", why=why, do="Restore the object first.")
        if self.keys and code in _BAD_KEYS:
            return Forbidden(
                f"{self.uri} may not be read with {self.keys.origin}",
                why=f"{_BAD_KEYS[code]} ({code})",
                do=f"Correct {self.keys.origin}.",
            )
        if status in (401, 403):
            how = f"with {self.keys.origin}" if self.keys else "without credentials"
            return Forbidden(
                f"{self.uri} may not be read {how}",
                why=f"{why}, which can also mean that it is not there",
                do="Check the spelling and who may read it; "
                "put your own keys into ~/.aws/credentials.",
            )
        if status < 400:
            return UserError(
                f"{self.uri} could not be read",
                why=f"{why}, and redirects of an object store are not followed",
                do="Tell the administrators: [s3] url or region may be wrong.",
            )
        if code == "RequestTimeout":  # a 400 that is transient
            return Unreachable(f"{self.uri} is unavailable now", why=why)
        return None


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an object; see `hpcimg.sources`."""
    place = Place(settings.service, settings.region)
    target = Target(reference.uri, parse_key(reference), place, _keys(settings))
    with open_session(settings, redirects=False) as session:
        for _ in range(2):
            # The service is the site's, including bucket and region.
            session.reach.trust(target.url)
            try:
                headers = functools.partial(target.headers, validator)
                wanted = Get(target.url, headers, offer=_offer, check=target.check)
                return download(session, wanted, sink, settings)
            except OtherRegion as other:
                target = target._replace(place=place._replace(region=str(other)))
    raise Unreachable(f"{reference.uri} could not be read", why="each region refers to another one")


def parse_key(reference: Reference) -> Key:
    """Parse `bucket/key[?versionId=ID]`, the key as in `objectnames`. Raises BadReference."""
    bucket, _, rest = reference.rest.partition("/")
    raw, mark, query = rest.partition("?")
    version = _VERSION.fullmatch(query)
    if not _BUCKET.fullmatch(bucket) or not raw or (mark and not version):
        raise BadReference(
            f"{reference.uri} names no object",
            why="only versionId=ID may follow a ?, which is %3F in a key" if mark else "",
            do=f"Write {reference.scheme}://BUCKET/KEY.",
        )
    key = objectnames.decode(reference, raw, before=f"{bucket}/")
    if any(part in (".", "..") for part in key.split("/")):
        raise BadReference(f"{reference.uri} names no object", why="it has . or .. in it")
    return Key(bucket, key, version[1] if version else "")


def _keys(settings: Settings) -> aws.Keys | None:
    if settings.credentials:
        return aws.site_keys(settings.credentials)
    return aws.own_keys() if settings.as_user else None


def _offer(response: Response, total: int | None) -> Offer:
    text = response.headers.get("x-amz-checksum-sha256", "")
    sha256 = ""
    if _SHA256.fullmatch(text) and response.headers.get("x-amz-checksum-type") != "COMPOSITE":
        sha256 = base64.b64decode(text).hex()
    return Offer(response.headers.get("ETag") or "none", total, sha256)
