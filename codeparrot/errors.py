"""Every error a user can meet, in one tree.

    CodeParrotError            exit code 1: the stage failed, its message says what to do
    +-- ConfigError            exit code 2: nothing was started
    +-- Interrupted            exit code 3: run the same command again to continue
    +-- StorageError
    |   +-- ObjectNotFound
    |   +-- BucketNotFound
    |   +-- AccessDenied
    |   +-- StoreUnreachable
    |   +-- PreconditionFailed
    |   +-- StoreFull
    +-- ManifestError          a stage's output is missing or is not what its manifest says
    +-- SourceError
    +-- EmptyCorpusError
    +-- TokenizerError
    +-- LedgerError            tokens in and tokens out do not balance
    +-- LeaseError
    |   +-- LeaseHeld          another process writes this output
    |   +-- LeaseLost          another process has taken over
    +-- CheckpointError
    +-- TrainingError
    +-- GenerationError        a completion cannot be made as asked
    +-- ClusterError
    +-- HumanEvalError         problems or completions cannot be scored
    +-- SandboxError           programs cannot be run safely here
    +-- ScalingError           points determine no scaling law

A message names the object, the value and the way out. Each takes that message as its only argument,
so that it survives pickling from a Ray worker to the driver.
"""


class CodeParrotError(Exception):
    """The root: everything that is reported to a person without a traceback."""

    exit_code = 1
    kind = "error"
    """How the line that reports it begins."""


class ConfigError(CodeParrotError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class Interrupted(CodeParrotError):
    """A signal ended the stage; what it had committed stays valid."""

    exit_code = 3
    kind = "interrupted"


class StorageError(CodeParrotError):
    """The object store did not do what was asked of it."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class BucketNotFound(StorageError):
    """The bucket does not exist."""


class AccessDenied(StorageError):
    """The store refused the credentials, or there are none."""


class StoreUnreachable(StorageError):
    """Nothing answers at the endpoint, or it stopped answering."""


class PreconditionFailed(StorageError):
    """A conditional write lost against another writer."""


class StoreFull(StorageError):
    """There is no space left to write to."""


class ManifestError(CodeParrotError):
    """A stage's output is missing, or is not what its manifest says."""


class SourceError(CodeParrotError):
    """A source of code cannot be read at all."""


class EmptyCorpusError(CodeParrotError):
    """No document is left."""


class TokenizerError(CodeParrotError):
    """The tokenizer cannot be trained or loaded."""


class LedgerError(CodeParrotError):
    """Tokens in and tokens out do not balance."""


class LeaseError(CodeParrotError):
    """An output has one writer at a time."""


class LeaseHeld(LeaseError):
    """Another process writes this output."""


class LeaseLost(LeaseError):
    """Another process has taken over; what this one has not committed does not count."""


class CheckpointError(CodeParrotError):
    """A checkpoint cannot be written or read."""


class TrainingError(CodeParrotError):
    """Training cannot go on."""


class GenerationError(CodeParrotError):
    """A completion cannot be made as asked, or not by this model."""


class ClusterError(CodeParrotError):
    """The Ray cluster cannot run what was asked of it."""


class HumanEvalError(CodeParrotError):
    """Problems or completions cannot be read, or do not belong together."""


class SandboxError(CodeParrotError):
    """Programs of a model cannot be run here, or not safely."""


class ScalingError(CodeParrotError):
    """Points determine no scaling law."""
