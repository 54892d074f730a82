"""What a stage job is told, and what it answers. Plain JSON both ways; imports no torch.

The flow writes a `StageSpec`, `torchrun -m m1.stages.worker <spec>` reads it, does the stage and
leaves a `StageResult` beside the attempt's objects. Only the flow commits.

Objects of one attempt, all below `runs/<run>/<stage>/attempts/<attempt>/`:

    outputs/...                     what the stage hands over (weights, corpus, reports, metrics)
    checkpoints/step-00000040/...   to resume from; `checkpoint.json` is written last
    result.json                     StageResult, written last of all
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from m1.infra.canonical_json import canonical_json, parse_json
from m1.infra.errors import CorruptObjectError
from m1.infra.manifest import ObjectEntry

SPEC_VERSION = 1
RESULT_NAME = "result.json"
OUTPUTS_PREFIX = "outputs/"
CHECKPOINTS_PREFIX = "checkpoints/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentRef:
    """One committed stage that this stage reads."""

    attempt: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A complete checkpoint of an earlier attempt of the same fingerprint."""

    attempt: str
    step: int
    record_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """Everything a stage job needs to know."""

    run: str
    stage: str
    fingerprint: str
    attempt: str
    fence: int
    store_url: str
    seed: int
    order: tuple[str, ...]
    settings: Mapping[str, Any]
    all_settings: Mapping[str, Mapping[str, Any]]
    model: Mapping[str, Any]
    layout: Mapping[str, Any]
    parents: Mapping[str, ParentRef]
    resume: ResumePoint | None = None
    spec_version: int = SPEC_VERSION

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            CorruptObjectError: not a spec of this version.
        """
        fields = parse_json(body)
        if not isinstance(fields, dict) or fields.get("spec_version") != SPEC_VERSION:
            raise CorruptObjectError(f"not a stage spec of version {SPEC_VERSION}")
        fields["parents"] = {k: ParentRef(**v) for k, v in fields["parents"].items()}
        fields["resume"] = ResumePoint(**fields["resume"]) if fields["resume"] else None
        fields["order"] = tuple(fields["order"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """What a stage function returns."""

    metrics: Mapping[str, Any]
    steps: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What the job left in the store; the flow verifies it and turns it into the commit.

    `metrics` uses, where they apply, the names of DESIGN.md section 6: loss_first, loss_last,
    heldout_loss, reward_first, reward_last, accuracy, tokens_per_second, and further ones.
    """

    fingerprint: str
    attempt: str
    fence: int
    objects: tuple[ObjectEntry, ...]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    steps: int
    tokens: int
    seconds: float

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        fields = parse_json(body)
        if not isinstance(fields, dict):
            raise CorruptObjectError("not a stage result")
        fields["objects"] = tuple(ObjectEntry(**entry) for entry in fields["objects"])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The heartbeat in `progress.json`: how far, how good, how long still."""

    stage: str
    attempt: str
    phase: str  # what the job does now: starting, loading, evaluating, training, saving, ...
    step: int = 0
    steps: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    eta_seconds: float | None = None
    loss: float | None = None
    reward: float | None = None
    samples: tuple[Mapping[str, str], ...] = ()
    updated_at: float = 0.0

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        fields = parse_json(body)
        if not isinstance(fields, dict):
            raise CorruptObjectError("not a progress record")
        fields["samples"] = tuple(fields.get("samples", ()))
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a stage's result depends on, and nothing else (DESIGN.md section 4, Identity)."""

    stage: str
    kind_version: int
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int
    recipe_digest: str | None
    parents: Mapping[str, str] = field(default_factory=dict)  # stage -> commit digest

    def fingerprint(self) -> str:
        """Sha256 over the canonical JSON of all fields."""
        return hashlib.sha256(canonical_json(dataclasses.asdict(self))).hexdigest()
