"""URLs of checkpoints: which there are, and what each leads to."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote, urlsplit

from msgspec import Struct, field

from fingerprint.errors import InputError, InputNotFoundError, UnsupportedFormatError, clipped
from fingerprint.remote.folders import RemoteFolder
from fingerprint.remote.options import RemoteOptions
from fingerprint.remote.transfer import Transfer
from fingerprint.urls import URL

if TYPE_CHECKING:
    from fingerprint.remote.folders import Store

_BUCKETS: Final = ("s3", "gs", "gcs")
_PAGE: Final = re.compile(r"/([^/]+/[^/]+)(?:/(?:tree|blob|resolve)/([^/]+)(?:/(.+))?)?/?")


class Location(Struct, frozen=True):
    """A URL of a checkpoint, with how to fetch it; wherever a path is taken, it may stand for one."""

    url: str
    options: RemoteOptions = field(default_factory=RemoteOptions.from_environment)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """``path`` itself, or one with the options that the environment sets. Raises ``UsageError`` for bad ones."""
        return path if isinstance(path, cls) else cls(os.fspath(path))

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        """Without its query, which often is a signature that gives access."""
        return self.url.partition("#")[0].partition("?")[0] if self.url[:4].lower() == "http" else self.url


class Found(Struct, frozen=True):
    """What a location leads to: a folder, and the file in it that was meant; None: the folder itself."""

    folder: RemoteFolder
    name: str | None
    transfer: Transfer


def locate(location: Location) -> Found:
    """The folder and file that a URL means, none of them opened yet. Raises ``InputError``."""
    url = location.url
    match = URL.match(url)
    scheme = match[1].lower() if match is not None else ""
    transfer = Transfer(location.options)
    try:
        if scheme == "hf":
            return _on_hub(url, transfer)
        if scheme in _BUCKETS:
            return _in_bucket(scheme, url, transfer)
        if scheme in {"http", "https"}:
            page = _page_of_hub(url, location.options.hub)
            return _on_web(url, transfer) if page is None else _on_hub(page, transfer)
    except BaseException as error:
        transfer.close()
        if isinstance(error, InputError) and error.path is None:
            error.path = str(location)
        raise
    transfer.close()
    hint = "https, http, hf, s3 and gs can; a path of this machine is written without"
    raise UnsupportedFormatError(f"{clipped(scheme)}:// cannot be read", path=clipped(str(location)), hint=hint)


def _on_hub(url: str, transfer: Transfer) -> Found:
    from fingerprint.remote.hub import HubStore, Repository
    from fingerprint.remote.session import Session

    repository = Repository.parse(url)
    return _found(HubStore(Session(transfer), repository), repository.path, transfer)


def _in_bucket(scheme: str, url: str, transfer: Transfer) -> Found:
    from fingerprint.remote.buckets import BucketStore

    path = url.partition("://")[2].strip("/")
    if not path or any(part in {"", ".", ".."} for part in path.split("/")):
        raise InputError("no bucket and key", path=clipped(url), hint=f"{scheme}://bucket/key-or-prefix")
    store = BucketStore(transfer, scheme)
    folder, _, name = path.rpartition("/")
    if not folder or store.is_folder(path):
        return Found(RemoteFolder(store, transfer, f"{path}/"), None, transfer)
    return Found(RemoteFolder(store, transfer, f"{folder}/"), name, transfer)


def _found(store: Store, path: str, transfer: Transfer) -> Found:
    """What ``path`` is among the entries of its folder."""
    if not path:
        return Found(RemoteFolder(store, transfer), None, transfer)
    above, _, name = path.rpartition("/")
    folder = RemoteFolder(store, transfer, f"{above}/" if above else "")
    if name in folder.file_names():
        return Found(folder, name, transfer)
    if name in folder.folder_names():
        return Found(folder.sub(name), None, transfer)
    raise InputNotFoundError("no such file or folder", path=store.shown(path))


def _on_web(url: str, transfer: Transfer) -> Found:
    from fingerprint.remote.session import Session, origin_of
    from fingerprint.remote.web import WebStore

    origin_of(url)
    address = urlsplit(url.partition("#")[0])
    above, _, last = address.path.rpartition("/")
    name = unquote(last)
    if not name or "/" in name:
        hint = "a web server does not list its files: give one, or the index of shards"
        raise UnsupportedFormatError("a folder", path=clipped(str(Location(url, transfer.options))), hint=hint)
    base = f"{address.scheme}://{address.netloc}{above}/"
    return Found(RemoteFolder(WebStore(Session(transfer), base, address.query), transfer), name, transfer)


def _page_of_hub(url: str, hub: str) -> str | None:
    """The ``hf://`` URL for a page of the hub that shows a repository, or a file or folder of it."""
    if not url.startswith(f"{hub}/"):
        return None
    address = urlsplit(url)
    match = _PAGE.fullmatch(address.path.removeprefix(urlsplit(hub).path))
    if match is None or address.query:
        return None
    name, revision, path = match.groups()
    return f"hf://{name}" + (f"@{revision}" if revision else "") + (f"/{unquote(path)}" if path else "")
