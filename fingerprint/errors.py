"""Every error that this project raises on purpose, in one tree.

::

    WeightprintError
    ├── InputError                     what was given to be read
    │   ├── InputNotFoundError         there is nothing at that path
    │   ├── UnsupportedFormatError     no reader knows these bytes
    │   ├── MalformedFileError         the bytes contradict their own format
    │   └── LimitExceededError         a bound was reached before memory was asked for
    ├── SignatureError                 signature files
    │   ├── MalformedSignatureError    damaged, truncated or forged structure
    │   ├── SignatureVersionError      a major version that this program does not know
    │   ├── IncompatibleParametersError  made with other parameters of the method
    │   └── WrongKeyError              a keyed sketch was made with another secret key
    ├── RegistryError                  the registry on disk
    │   ├── RegistryBrokenError        its files contradict each other
    │   ├── RegistryBusyError          another process holds it for too long
    │   ├── UnknownModelError          no model of that name
    │   └── NameTakenError             the name is registered with other weights
    ├── WorkerLostError                a process that shared the work was lost, or cannot be started
    └── UsageError                     a call that cannot be carried out as given

The command line maps every one of them to one line on standard error and exit status 2.
"""

from __future__ import annotations


class WeightprintError(Exception):
    """Root of the tree."""


class InputError(WeightprintError):
    """A checkpoint (or signature given as a checkpoint) that cannot be used.

    Attributes: ``path`` of the file, ``tensor`` and byte ``offset`` where they are known, ``hint``: what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.path = path
        self.tensor = tensor
        self.offset = offset
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        where = [part for part in (self.path, self._tensor_label(), self._offset_label()) if part]
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def _tensor_label(self) -> str | None:
        return None if self.tensor is None else f"tensor {clipped(self.tensor)!r}"

    def _offset_label(self) -> str | None:
        return None if self.offset is None else f"offset {self.offset}"


class InputNotFoundError(InputError):
    """There is nothing at that path."""


class UnsupportedFormatError(InputError):
    """No reader knows these bytes."""


class MalformedFileError(InputError):
    """The bytes contradict their own format."""


class LimitExceededError(InputError):
    """A bound on sizes, counts or nesting was reached before memory was asked for."""


class SignatureError(WeightprintError):
    """A signature file that cannot be used."""


class MalformedSignatureError(SignatureError):
    """Damaged, truncated or contradictory signature file."""


class SignatureVersionError(SignatureError):
    """A major version of the signature format that this program does not know."""


class IncompatibleParametersError(SignatureError):
    """Two fingerprints were made with different parameters of the method and cannot be compared."""


class WrongKeyError(SignatureError):
    """The secret key is not the one that a keyed sketch was made with."""


class RegistryError(WeightprintError):
    """The registry on disk cannot serve the request."""


class RegistryBrokenError(RegistryError):
    """Files of the registry are damaged or contradict each other."""


class RegistryBusyError(RegistryError):
    """Another process holds the registry for longer than the waiting time."""


class UnknownModelError(RegistryError):
    """No registered model has that name or signature."""


class NameTakenError(RegistryError):
    """The name is already registered with other weights."""


class WorkerLostError(WeightprintError):
    """A process that shared the work was lost, or processes cannot be started."""


class UsageError(WeightprintError):
    """A call that cannot be carried out as given."""


def clipped(text: str, limit: int = 120) -> str:
    """``text`` shortened to ``limit`` characters: names out of hostile files go into messages."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def described(error: Exception) -> str:
    """What ``error`` says, and of what kind it is where that is not one of this tree, or where it says nothing."""
    text = str(error)
    return text if text and isinstance(error, WeightprintError) else f"{type(error).__name__}{text and f': {text}'}"
