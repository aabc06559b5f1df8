"""Every error of the client a person can meet, in one tree.

    ClientError                exit code 1: its message says what was expected, what was seen, and what to do
    +-- Misuse                 exit code 2: nothing was started
    |   +-- MissingTool        a program is not installed
    +-- Stopped                exit code 3: the wait or the run was interrupted, and can go on
    +-- NoCluster              no API server is configured
    +-- ApiError               the API server refused
    |   +-- Unavailable        it does not answer, or asks to come back later; trying again may help
    |   +-- Unauthorized       it does not know who asks
    |   +-- Forbidden          it knows, and does not allow it
    |   +-- NotFound           there is no object of this name
    |   +-- MissingKind        there are no objects of this kind: the operator's CRDs are not installed
    |   +-- AlreadyExists      there is an object of this name already
    |   +-- Conflict           somebody else changed the object meanwhile
    |   +-- Invalid            the object is not what its kind allows
    +-- WaitTimeout            a deadline passed; with the last status seen
    +-- ReleaseError           the release of the chart is not there, or not as it should be
    +-- RunError               the run cannot do what was asked of it
    +-- ToolFailed             a program ended with an error
    +-- LocalClusterError      the local cluster cannot be made

Messages name kind, namespace and name. The client does not share the library's tree: it knows nothing of the library.
"""


class ClientError(Exception):
    """The root: everything that is reported to a person without a traceback."""

    exit_code = 1
    kind = "error"


class Misuse(ClientError):
    """The command line, the recipe or the environment is wrong."""

    exit_code = 2


class MissingTool(Misuse):
    """A program that the command needs is not installed."""


class Stopped(ClientError):
    """A person or a signal ended the command; what it had started goes on, or can."""

    exit_code = 3
    kind = "interrupted"


class NoCluster(ClientError):
    """There is no configuration that says where an API server is."""


class ApiError(ClientError):
    """The API server refused."""


class Unavailable(ApiError):
    """The API server does not answer, or not now."""


class Unauthorized(ApiError):
    """The credentials are unknown to the API server, or have expired."""


class Forbidden(ApiError):
    """These credentials may not do this."""


class NotFound(ApiError):
    """There is no object of this name."""


class MissingKind(ApiError):
    """The API server knows no objects of this kind."""


class AlreadyExists(ApiError):
    """An object of this name exists."""


class Conflict(ApiError):
    """The object was changed by somebody else."""


class Invalid(ApiError):
    """The object is not what its kind, or a policy, allows."""


class WaitTimeout(ClientError):
    """A deadline passed before what was waited for."""


class ReleaseError(ClientError):
    """The release of the chart is not there, or is not as it should be."""


class RunError(ClientError):
    """The run is not in a state for what was asked."""


class ToolFailed(ClientError):
    """A program of others ended with an error."""


class LocalClusterError(ClientError):
    """The local cluster cannot be made."""
