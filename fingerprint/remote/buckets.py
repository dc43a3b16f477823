"""Buckets of object stores, through fsspec: listed and read with the credentials that its libraries find."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from fingerprint.errors import InputError, InputNotFoundError, LimitExceededError, MalformedFileError, clipped
from fingerprint.readers.index import is_plain_name
from fingerprint.readers.places import MAX_ENTRIES
from fingerprint.remote.folders import Listing
from fingerprint.remote.pages import RangedSource
from fingerprint.remote.transfer import InterruptedTransferError, Tries

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.remote.transfer import Transfer


class Scheme(Struct, frozen=True):
    """Which packages read a kind of URL, and the extra of this project that has them."""

    package: str
    extra: str


SCHEMES: Final = {"s3": Scheme("s3fs", "s3"), "gs": Scheme("gcsfs", "gs"), "gcs": Scheme("gcsfs", "gs")}


class BucketStore:
    """The objects of a bucket; names are paths from its root."""

    def __init__(self, transfer: Transfer, scheme: str) -> None:
        """Raises ``InputError`` that names the extra where a package is not installed."""
        self._transfer = transfer
        self._scheme = scheme
        wanted = SCHEMES[scheme]
        try:
            import fsspec

            self._files: Any = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            hint = f"pip install 'weightprint[{wanted.extra}]'"
            message = f"{scheme}:// needs the package {wanted.package}, which is not installed"
            raise InputError(message, hint=hint) from error
        except Exception as error:  # a library of others: whatever it raises is about the place
            raise InputError(f"{wanted.package} cannot be set up: {_said(error)}") from error

    def is_folder(self, name: str) -> bool:
        """Whether ``name`` is a prefix, and no object. Raises ``InputError`` if it is neither."""
        return bool(self._asked(name, lambda: self._files.info(name))["type"] == "directory")

    def listing(self, prefix: str) -> Listing:
        """See ``Store``."""
        entries = self._asked(prefix, lambda: self._files.ls(prefix, detail=True))
        if len(entries) > MAX_ENTRIES:
            raise LimitExceededError(f"more than {MAX_ENTRIES} entries in the folder", path=self.shown(prefix))
        names: dict[str, set[str]] = {"file": set(), "directory": set()}
        for entry in entries:
            folder, _, name = str(entry["name"]).strip("/").rpartition("/")
            if folder == prefix.strip("/") and is_plain_name(name):
                names.setdefault(str(entry["type"]), set()).add(name)
        return Listing(frozenset(names["file"]), frozenset(names["directory"]))

    def open(self, name: str) -> RangedSource:
        """See ``Store``."""
        shown = self.shown(name)
        if posixpath.normpath(name) != name:
            raise InputNotFoundError("no name of a file", path=shown)
        status = self._asked(name, lambda: self._files.info(name))
        size = status.get("size")
        if status.get("type") != "file" or not isinstance(size, int) or size < 0:
            raise MalformedFileError("no object whose size is known", path=shown)

        def fetch(offset: int, length: int) -> bytes:
            data = self._asked(name, lambda: self._files.cat_file(name, start=offset, end=offset + length), length)
            if len(data) != length:
                raise InputError("the file was replaced while it was read", path=shown, hint="try again")
            self._transfer.count(received=length)
            return bytes(data)

        return RangedSource(shown, size, fetch, self._transfer)

    def shown(self, name: str) -> str:
        """See ``Store``."""
        return f"{self._scheme}://{name}"

    def _asked(self, name: str, ask: Callable[[], Any], length: int = 0) -> Any:
        tries = Tries(self._transfer, self.shown(name), length)
        while True:
            self._transfer.count(requests=1)
            try:
                return ask()
            except FileNotFoundError as error:
                raise InputNotFoundError("there is nothing", path=self.shown(name)) from error
            except PermissionError as error:
                raise InputError(f"access is denied: {_said(error)}", path=self.shown(name)) from error
            except (TimeoutError, ConnectionError) as error:
                tries.failed(InterruptedTransferError(f"the connection was lost: {_said(error)}"))
            except Exception as error:  # the libraries of stores have exceptions of their own, without a common root
                raise InputError(f"cannot be read: {_said(error)}", path=self.shown(name)) from error


def _said(error: Exception) -> str:
    return clipped(str(error) or type(error).__name__, 200)
