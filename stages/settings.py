"""The settings of every stage kind: what may be set, in which range, and what it means.

These classes are the single source of the presets' keys, of `--set stage.setting=value` and of
the dashboard's form. They import no torch. A field marked `WHERE` does not bear identity: it
changes how or where a stage runs, never its result.
"""

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

WHERE: dict[str, Any] = {"identity": False}


class StageSettings(BaseModel):
    """Base of all stage settings: unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CurateSettings(StageSettings):
    """Raw documents to tokenizer, shards and tasks."""

    recipe: str = Field("toy", description="Recipe name, or path of a recipe file.")
    corpus: str | None = Field(
        None, description="Folder of documents; empty: what the Python installation carries."
    )


class TrainSettings(StageSettings):
    """What every gradient-descent stage has in common."""

    steps: int = Field(100, ge=1, le=100_000_000, description="Optimizer steps.")
    window_tokens: int = Field(256, ge=16, le=16_777_216, description="Tokens per window.")
    windows_per_step: int = Field(8, ge=1, le=1_000_000, description="Windows per optimizer step.")
    micro_batch_windows: int = Field(
        8, ge=1, le=65_536, description="Windows per forward pass of one rank."
    )
    learning_rate: float = Field(1e-2, gt=0, le=10, description="Peak learning rate.")
    final_learning_rate: float = Field(1e-3, ge=0, le=10, description="Learning rate at the end.")
    warmup_steps: int = Field(10, ge=0, le=10_000_000, description="Linear warm-up steps.")
    constant_fraction: float = Field(
        1 / 3,
        ge=0,
        le=1,
        description="Share of the steps at the peak rate (M1 section 2.1: 2.5T of 7.5T).",
    )
    weight_decay: float = Field(0.1, ge=0, le=10, description="AdamW weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta 2 (M1 section 3.2).")
    epsilon: float = Field(1e-8, gt=0, le=1e-2, description="AdamW epsilon.")
    clip_gradient_norm: float = Field(1.0, gt=0, le=1e6, description="Global gradient-norm clip.")
    router_auxiliary_coefficient: float = Field(
        1e-3, ge=0, le=1, description="Load-balancing loss, Megatron's form (E x sum f P)."
    )
    rotary_base: float = Field(
        10_000.0, ge=1, le=1e12, description="Rotary base of the softmax layers in this stage."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Parameter type in training.")
    checkpoint_every_steps: int = Field(
        100, ge=1, le=10_000_000, description="Steps between checkpoints.", json_schema_extra=WHERE
    )
    log_every_steps: int = Field(
        1, ge=1, le=1_000_000, description="Steps between metric lines.", json_schema_extra=WHERE
    )
    heldout_tokens: int = Field(
        32_768, ge=256, le=1_000_000_000, description="Held-out tokens evaluated at the ends."
    )
    spike_nats: float = Field(
        2.0, gt=0, le=1e6, description="A loss this far above its running median is passed over."
    )
    skips_in_a_row: int = Field(
        3, ge=1, le=1_000_000, description="So many bad batches in a row: back to a checkpoint."
    )
    rollbacks_allowed: int = Field(
        3, ge=0, le=1_000, description="Returns to a checkpoint before the stage fails."
    )


class PretrainSettings(TrainSettings):
    """Continued pretraining on the reasoning-heavy mixture (M1 section 2.1)."""

    start_from: str | None = Field(
        None,
        description="Folder of published weights to continue, as M1 continued MiniMax-Text-01; "
        "every machine of the job reads it. Empty: start from random weights.",
    )
    mixture: dict[str, float] = Field(
        default_factory=lambda: {"code": 0.4, "stem": 0.2, "qa": 0.1, "book": 0.1, "web": 0.2},
        description="Share of tokens per kind of document; STEM, code, books, QA together 70 %.",
    )


class TaskMix(StageSettings):
    """One task family in a mix."""

    share: float = Field(1.0, gt=0, le=1e6, description="Relative weight.")
    difficulty: int = Field(4, ge=1, le=10_000, description="Steps of the problem.")


class SftSettings(TrainSettings):
    """Chain-of-thought cold start (M1 section 2.2): prompts masked, samples packed whole."""

    tasks: dict[str, TaskMix] = Field(
        default_factory=lambda: {"max_fold": TaskMix()}, description="Task families and shares."
    )
    examples: int = Field(4096, ge=1, le=100_000_000, description="Distinct cold-start samples.")
    text_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of rows that are ordinary text, so that language is not forgotten.",
    )
    noise: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of written steps replaced by a random digit (ours: leaves RL work).",
    )
    evaluation_problems: int = Field(
        256, ge=1, le=1_000_000, description="Held-out problems per family, before and after."
    )
    evaluation_tokens: int = Field(
        64, ge=1, le=16_777_216, description="Longest answer written in an evaluation."
    )


class ExtendSettings(TrainSettings):
    """One step of context extension (M1 section 2.1, 01 report table 6)."""

    long_share: float = Field(
        0.7, ge=0, le=1, description="Share of rows that lie inside one long document."
    )
    replay_share: float = Field(
        0.2, ge=0, le=1, description="Share of rows that replay SFT samples (ours)."
    )
    tasks: dict[str, TaskMix] = Field(
        default_factory=dict, description="Families replayed and evaluated."
    )
    noise: float = Field(0.25, ge=0, le=1, description="Noise of the replayed samples, as in sft.")
    examples: int = Field(4096, ge=1, le=100_000_000, description="Distinct replayed samples.")
    short_window_tokens: int = Field(
        256, ge=16, le=1_048_576, description="Window whose loss must not suffer."
    )
    evaluation_problems: int = Field(
        256, ge=1, le=1_000_000, description="Held-out problems per family, before and after."
    )
    evaluation_tokens: int = Field(
        64, ge=1, le=16_777_216, description="Longest answer written in an evaluation."
    )


class ReinforceSettings(TrainSettings):
    """Curriculum RL with CISPO (M1 sections 3 to 5). `steps` counts rollout batches."""

    tasks: dict[str, TaskMix] = Field(
        default_factory=lambda: {"max_fold": TaskMix()}, description="Families from the start."
    )
    later_tasks: dict[str, TaskMix] = Field(
        default_factory=dict, description="Families mixed in gradually after the first phase."
    )
    first_phase_fraction: float = Field(
        0.3, ge=0, le=1, description="Share of the steps before later tasks come in (ours)."
    )
    prompts_per_step: int = Field(16, ge=1, le=1_000_000, description="Prompts per rollout batch.")
    samples_per_prompt: int = Field(8, ge=2, le=4096, description="Group size.")
    updates_per_step: int = Field(
        16, ge=1, le=1024, description="Off-policy updates per rollout batch (M1 section 3.1: 16)."
    )
    objective: Literal["cispo", "grpo", "dapo"] = Field("cispo", description="Policy objective.")
    is_weight_max: float = Field(
        5.0, ge=1, le=1e6, description="Cap of the importance weight itself (ours, after ScaleRL)."
    )
    is_weight_min: float = Field(0.0, ge=0, le=1, description="Floor of the importance weight.")
    clip_low: float = Field(0.2, gt=0, le=1, description="Lower clip offset of grpo and dapo.")
    clip_high: float | None = Field(
        None, gt=0, le=1e6, description="Upper one; empty: 0.2 for grpo, 0.28 for dapo."
    )
    mask_low: float | None = Field(
        None, gt=0, le=1, description="M1 equation 7: drop tokens below 1 - this; empty: none."
    )
    mask_high: float | None = Field(
        None, gt=0, le=1e6, description="M1 equation 7: drop tokens above 1 + this; empty: none."
    )
    normaliser: Literal["group", "batch", "sample"] = Field(
        "batch",
        description="What counts the same: every prompt (eq. 4), token, or response (section 5).",
    )
    windows: tuple[int, ...] = Field(
        (),
        description="Response windows to grow through before window_tokens (M1 section 5).",
    )
    top_p: float = Field(
        1.0, ge=1, le=1, description="Only 1: a nucleus at rollout biases the importance ratio."
    )
    largest_gap_nats: float = Field(
        0.1, gt=0, le=100, description="Stop when sampler and trainer differ more (per token)."
    )
    largest_loop_share: float = Field(
        0.9, gt=0, le=1, description="Stop when more responses than this end in a loop."
    )
    temperature: float = Field(
        1.0, ge=1, le=1, description="Only 1: the ratio compares the model's own probabilities."
    )
    format_reward: float = Field(0.1, ge=0, le=1, description="Reward for a well-formed answer.")
    overlong_penalty: float = Field(
        0.5, ge=0, le=10, description="Taken off at the window's end, linear in the last fifth."
    )
    resample_rounds: int = Field(
        2, ge=0, le=64, description="Extra rounds to replace groups without signal."
    )
    repetition_probability: float = Field(
        0.99, gt=0, le=1, description="Stop a rollout when this sure ... (M1 section 3.2)"
    )
    repetition_tokens: int = Field(
        3000, ge=1, le=1_000_000, description="... for this many tokens in a row (M1: 3,000)."
    )
    evaluation_problems: int = Field(
        256, ge=1, le=1_000_000, description="Held-out problems per family, before and after."
    )
    evaluation_tokens: int = Field(
        64, ge=1, le=16_777_216, description="Longest answer written in an evaluation."
    )

    @model_validator(mode="after")
    def _windows_grow(self) -> Self:
        rungs = (*self.windows, self.window_tokens)
        if any(low >= high for low, high in pairwise(rungs)) or min(rungs) < 16:
            raise ValueError(
                f"windows = {self.windows}: accepted: growing, from 16 to window_tokens"
            )
        if (self.mask_low is None) != (self.mask_high is None):
            raise ValueError("mask_low and mask_high: accepted: both or neither")
        return self


class EvaluateSettings(StageSettings):
    """Before/after table over all stages."""

    heldout_tokens: int = Field(32_768, ge=256, le=1_000_000_000, description="Per kind.")
    window_tokens: int = Field(256, ge=16, le=16_777_216, description="Short window.")
    problems: int = Field(256, ge=1, le=1_000_000, description="Held-out problems per family.")
    tasks: dict[str, TaskMix] = Field(
        default_factory=lambda: {"max_fold": TaskMix()}, description="Families evaluated."
    )
    evaluation_tokens: int = Field(
        64, ge=1, le=16_777_216, description="Longest answer written in an evaluation."
    )
    pass_at: int = Field(4, ge=1, le=1024, description="Samples per problem: the largest k.")
    needle_lengths: tuple[int, ...] = Field(
        (256, 1024),
        description="Windows in which a hidden fact is asked for; each at least 256 tokens.",
    )
    needle_trials: int = Field(2, ge=1, le=10_000, description="Windows per length and depth.")
    needle_distractors: int = Field(
        3,
        ge=1,
        le=16,
        description="Further facts under other keys, in the harder half of the grid.",
    )

    @field_validator("needle_lengths")
    @classmethod
    def _long_enough(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 256 <= length <= 16_777_216 for length in lengths):
            raise ValueError("accepted: lengths of 256 to 16777216 tokens")
        return lengths

    temperature: float = Field(1.0, gt=0, le=10, description="Sampling temperature of pass@k.")


class ExportSettings(StageSettings):
    """A folder that `transformers` loads."""

    precision: Literal["fp32", "bf16"] = Field("fp32", description="Type of the tensors.")
    max_shard_bytes: int = Field(
        5 * 2**30, ge=2**16, le=2**40, description="Largest safetensors file."
    )
    parity_tokens: int = Field(
        256, ge=1, le=1_000_000, description="Tokens whose logits are compared after export."
    )
