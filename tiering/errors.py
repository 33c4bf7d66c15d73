"""The error tree: each error is named after the caller's situation and says what to do."""

MOST = 1600
"""Characters of an error's text."""


def shorten(text: str, most: int) -> str:
    """Return ``text`` with at most about ``most`` characters. Its end stays: what is to be done stands there."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


class PenstockError(Exception):
    """Base of every error that penstock raises on purpose. Its text is one line that any terminal can show, whatever
    names in files or messages of libraries have become a part of it."""

    def __init__(self, message: object = "") -> None:
        line = " ".join(part.strip() for part in str(message).splitlines())
        super().__init__(shorten(line, MOST).encode("utf-8", "backslashreplace").decode())


class ConfigError(PenstockError):
    """A key, value or option of the configuration is not usable."""


class CheckpointError(PenstockError):
    """The checkpoint is absent, incomplete, damaged or of a kind that penstock does not read."""


class BundleError(PenstockError):
    """The bundle on flash cannot be used as it is."""


class BundleCorrupt(BundleError):
    """A block of the bundle is truncated or altered; names file, block and offset."""


class BundleVersionError(BundleError):
    """The bundle was written by a newer penstock."""


class PrefixError(PenstockError):
    """A stored prefix, or the folder of them, cannot be used as it is."""


class PrefixDamaged(PrefixError):
    """A prefix file is truncated or altered; names it, and what of it."""


class PrefixVersionError(PrefixError):
    """A prefix file was written by a newer penstock."""


class FlashFull(PenstockError):
    """The store has no room for what must be written."""


class ReadError(PenstockError):
    """The drive failed to deliver a block; nothing was computed on it."""


class BudgetTooSmall(PenstockError):
    """The memory budget cannot hold what must be resident at once; says the least that can."""


class DeviceUnavailable(PenstockError):
    """The compute device asked for is not on this machine."""


class DeviceFull(PenstockError):
    """A device has less memory free than it was given to use, or computing took more than was left."""


class UnplaceableModule(PenstockError):
    """A module's weights cannot be streamed under this budget; names the module."""


class PromptTooLong(PenstockError):
    """The prompt has more tokens than the model has positions, or than there is room for keys and values."""


class TextError(PenstockError):
    """A text for a model to read cannot be read, or is too short."""


class EvaluationError(PenstockError):
    """What a weight format does to a model cannot be measured."""


class TraceError(PenstockError):
    """A trace cannot be recorded, written or used."""


class RecordingError(PenstockError):
    """The recording of a run is truncated, altered, of another version, or none at all."""


class DeviceModelError(PenstockError):
    """A device is described by numbers that no device has; names the field."""


class Closed(PenstockError):
    """The model was closed; its weights are no longer in memory."""


class Forked(Closed):
    """The model was loaded by the process that this one was forked from."""


class RequestError(PenstockError):
    """A request asks for what the model cannot do."""


class QueueFull(PenstockError):
    """As many requests wait as may wait. ``retry_after`` says in how many seconds there may be a place."""

    def __init__(self, message: object = "", retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TimedOut(PenstockError):
    """A request was not answered in the time that it had."""


class ServerError(PenstockError):
    """The server cannot start: something that it needs is not installed, or its address is taken."""


class BatchError(PenstockError):
    """A file of requests, or of answers, cannot be used as it is; names the line."""
