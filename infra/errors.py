"""Every error this project raises on purpose, as one tree. Each class answers: may I retry?

M1Error
├── UsageError                 the person asked for the impossible: exit 2, never retried
│   ├── InvalidSettingError      one field, its value, what is accepted
│   │   └── PromptTooLongError     a prompt leaves no room in the model's window
│   ├── SettingsChangedError     resume with other settings than the run was started with
│   └── SandboxUnavailableError  nothing here can isolate untrusted code: it is not run at all
├── SandboxFailedError         the sandbox broke, not the program in it: the sample is masked
├── StageFailedError           a stage ended without a verified commit: exit 3
│   └── BadInputError            the input of a stage is unusable: exit 65, never retried
├── PreemptedError             stopped after a checkpoint: exit 75, retried, not counted
├── LeaseError
│   ├── LeaseHeldError           somebody else works on this stage: wait or give up
│   └── LeaseLostError           we were fenced off: stop at once, never write again
└── StoreError
    ├── NotFoundError            the key does not exist
    ├── PreconditionFailedError  a conditional write lost its race
    ├── CorruptObjectError       bytes do not match their recorded digest: never retried
    ├── StoreAccessError         read-only, forbidden, bad credentials: never retried
    └── StoreUnavailableError    unreachable or overloaded: may be retried
"""

from collections.abc import Mapping

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_STAGE_FAILED = 3
EXIT_BAD_INPUT = 65  # EX_DATAERR of sysexits.h
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT


class M1Error(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = EXIT_STAGE_FAILED


class UsageError(M1Error):
    """The request cannot be carried out as it stands; nothing was launched or written."""

    exit_code = EXIT_USAGE


class InvalidSettingError(UsageError):
    """One setting is unknown or out of range."""

    def __init__(self, *, field: str, value: object, accepted: str) -> None:
        super().__init__(f"{field} = {value!r} is not accepted; accepted: {accepted}")
        self.field = field
        self.value = value
        self.accepted = accepted


class PromptTooLongError(InvalidSettingError):
    """A prompt leaves no room for an answer in the window of the model."""

    def __init__(self, *, prompt_tokens: int, window_tokens: int) -> None:
        super().__init__(
            field="prompt",
            value=f"{prompt_tokens} tokens",
            accepted=f"at most {window_tokens - 1} tokens, the window is {window_tokens}",
        )


class SettingsChangedError(UsageError):
    """A run may only be resumed with the settings it was started with.

    Args:
        run: id of the existing run.
        changes: dotted setting name -> (stored value, requested value).
        first_stage: first stage that the change touches, for the `m1 fork` line.
    """

    def __init__(
        self, *, run: str, changes: Mapping[str, tuple[object, object]], first_stage: str
    ) -> None:
        lines = [f"  {name}: {old!r} -> {new!r}" for name, (old, new) in sorted(changes.items())]
        sets = " ".join(f"--set {name}={new}" for name, (_, new) in sorted(changes.items()))
        super().__init__(
            f"run {run!r} exists with other settings:\n"
            + "\n".join(lines)
            + f"\nto use them, fork: m1 fork {run} {run}-2 --from {first_stage} {sets}"
        )
        self.run = run
        self.changes = dict(changes)


class SandboxUnavailableError(UsageError):
    """This machine cannot isolate untrusted code; the message names what is missing."""


class SandboxFailedError(M1Error):
    """A sandbox could not be started, or broke before it had a program. May be retried."""


class StageFailedError(M1Error):
    """A stage ended without a verified commit."""


class BadInputError(StageFailedError):
    """The input of a stage is unusable; trying again cannot help."""

    exit_code = EXIT_BAD_INPUT


class PreemptedError(M1Error):
    """The job was told to stop and did so after writing a checkpoint."""

    exit_code = EXIT_PREEMPTED


class LeaseError(M1Error):
    """Something about who may work on a stage."""


class LeaseHeldError(LeaseError):
    """Another holder works on this stage."""

    def __init__(self, *, key: str, holder: str, expires_in_seconds: float) -> None:
        super().__init__(
            f"{key} is held by {holder} for at most another {expires_in_seconds:.0f} s; "
            "wait for it to end, or stop it"
        )
        self.holder = holder
        self.expires_in_seconds = expires_in_seconds


class LeaseLostError(LeaseError):
    """This holder can no longer prove that it is alone: it must stop writing."""


class StoreError(M1Error):
    """Base of everything that can go wrong with stored objects."""


class NotFoundError(StoreError):
    """No object with this key."""


class PreconditionFailedError(StoreError):
    """The object already existed, or is no longer the one that was read."""


class CorruptObjectError(StoreError):
    """Stored bytes do not match the size or digest that was recorded for them."""


class StoreAccessError(StoreError):
    """The store refuses: read-only, forbidden, or credentials that are wrong or expired."""

    exit_code = EXIT_USAGE


class StoreUnavailableError(StoreError):
    """The store cannot be reached or is overloaded, after all attempts were used up."""

    exit_code = EXIT_USAGE
