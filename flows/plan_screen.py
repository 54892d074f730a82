"""How `m1 plan` looks: the answer as tables on a terminal, and the curves as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m1.flows.screen import say, show_table, size_words
from m1.infra.errors import InvalidSettingError
from m1.model.cost.plan import Prices

PLOT_ENDINGS = (".svg", ".png", ".pdf")

Answer = Mapping[str, Any]


def show_plan(description: str, answer: Answer, prices: Prices) -> None:
    """Everything the JSON answer has, for people."""
    parameters = answer["parameters"]
    say(f"{answer['preset']}: {description}")
    say(f"parameters    {parameters['total']:,} ({parameters['active']:,} active per token)")
    say(f"store         {size_words(answer['store_bytes'])}")
    _show_memory(answer)
    _show_communication(answer)
    _show_flops(answer)
    _show_curve(answer)
    _show_money(answer, prices)
    if "simulation" in answer:
        _show_simulation(answer["simulation"])


def layout_words(layout: Answer) -> str:
    """Such as `512 = t4 p8 c4 d4, e32, full`: ranks, axes, experts, recomputation."""
    axes = " ".join(f"{n[0]}{layout[n]}" for n in ("tensor", "pipeline", "context", "data"))
    return f"{layout['world_size']:,} = {axes}, e{layout['expert']}, {layout['recompute']}"


def _show_memory(answer: Answer) -> None:
    rows = [
        [
            name,
            layout_words(stage["layout"]),
            *(_gigabytes(stage["memory_per_gpu"][kind]) for kind in _MEMORY_KINDS),
            *(_gigabytes(stage["activations_by_recompute"][kind]) for kind in _RECOMPUTE),
        ]
        for name, stage in answer["stages"].items()
    ]
    columns = (
        "stage",
        "ranks, experts, recompute",
        *_MEMORY_KINDS,
        *(f"({n})" for n in _RECOMPUTE),
    )
    show_table(
        "GB on the fullest GPU; in brackets activations by what is recomputed", columns, rows
    )


_MEMORY_KINDS = ("weights", "gradients", "optimizer", "activations", "total")
_RECOMPUTE = ("none", "selective", "full")


def _show_communication(answer: Answer) -> None:
    kinds = ("tensor", "sequence", "context", "expert", "pipeline", "data", "total")
    rows = [
        [
            name,
            *(_gigabytes(stage["communication_bytes_per_step"][kind]) for kind in kinds),
            f"{stage['pipeline_idle_share']:.0%}",
        ]
        for name, stage in answer["stages"].items()
    ]
    title = (
        "GB that one rank sends per optimizer step, by axis; share of it waiting for the pipeline"
    )
    show_table(title, ("stage", *kinds, "idle"), rows)


def _show_flops(answer: Answer) -> None:
    rows = [
        [f"{row['tokens']:,}", *(f"{row[n] / 1e9:,.1f}" for n in ("training", "prefill", "decode"))]
        for row in answer["flops_by_length"]
    ]
    title = "GFLOPs per token: training and prefill over a window, decoding at its end"
    show_table(title, ("length", "training", "prefill", "decode"), rows)


def _show_curve(answer: Answer) -> None:
    causal, figure = answer["compute_curve"]["causal"], answer["compute_curve"]["figure"]
    rows = [
        [
            f"{ours['tokens']:,}",
            *(f"{value / 1e16:.3g}" for value in (ours["model"], ours["deepseek_r1"])),
            f"{ours['ratio']:.2f}",
            f"{theirs['ratio']:.2f}",
        ]
        for ours, theirs in zip(causal, figure, strict=True)
    ]
    title = "10^16 FLOPs of one generation; the last ratio counts as figure 1 of the paper seems to"
    show_table(title, ("length", "this model", "DeepSeek-R1", "ratio", "ratio (figure)"), rows)


def _show_money(answer: Answer, prices: Prices) -> None:
    rows = [
        [stage, f"{hours:,.2f}", f"{answer['cost'][stage]:,.0f}"]
        for stage, hours in answer["gpu_hours"].items()
    ]
    title = (
        f"at {prices.utilisation:.0%} of a peak of {prices.peak_tflops:g} TFLOPs and "
        f"${prices.per_gpu_hour:g} per GPU-hour, without failures"
    )
    show_table(title, ("stage", "GPU-hours", "US dollars"), rows)


def _show_simulation(simulation: Answer) -> None:
    intervals = ("best", "young", "daly", "preset")
    rows = [
        [
            name,
            *(f"{stage['checkpoint']['every_steps'][key]:,}" for key in intervals),
            f"{stage['checkpoint']['expected_hours']['preset']:,.1f}",
            f"{stage['failures']:,.1f}",
            *_spread_cells(stage),
        ]
        for name, stage in simulation["stages"].items()
    ]
    rows.append(["total", *[""] * 6, *_spread_cells(simulation["total"])])
    columns = (
        "stage", *intervals, "preset h", "failures", "mean h", "5 % h", "median h", "95 % h",
        "training", "median $", "95 % $",
    )  # fmt: skip
    drawn = simulation["circumstances"]["trials"]
    title = (
        f"on machines that fail, {drawn:,} runs drawn: steps between checkpoints (the best for "
        "this model; by Young, Daly, the preset), hours at the best, share of time that trains"
    )
    show_table(title, columns, rows)


def _spread_cells(part: Answer) -> list[str]:
    hours = [f"{part['hours'][name]:,.1f}" for name in ("mean", "p5", "p50", "p95")]
    cost = [f"{part['cost'][name]:,.0f}" for name in ("p50", "p95")]
    return [*hours, f"{part['effective_share']['mean']:.1%}", *cost]


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f}"


def write_plot(file: str, answer: Answer) -> None:
    """FLOPs per token against length, and the generation curve beside DeepSeek-R1's.

    Raises:
        InvalidSettingError: not a picture's name, or a place that cannot be written.
    """
    if Path(file).suffix not in PLOT_ENDINGS:
        raise InvalidSettingError(
            field="--plot", value=file, accepted="a name ending in " + ", ".join(PLOT_ENDINGS)
        )
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = answer["flops_by_length"]
    for name in ("training", "prefill", "decode"):
        left.loglog([row["tokens"] for row in table], [row[name] for row in table], label=name)
    left.set(xlabel="tokens", ylabel="FLOPs per token")
    curve = answer["compute_curve"]["causal"]
    lengths = [point["tokens"] for point in curve]
    for key, name in (("model", answer["preset"]), ("deepseek_r1", "DeepSeek-R1")):
        right.plot(lengths, [point[key] for point in curve], label=name)
    right.set(xlabel="generated tokens", ylabel="FLOPs of the generation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    try:
        figure.savefig(file)
    except OSError as error:
        raise InvalidSettingError(
            field="--plot", value=file, accepted=f"a writable file ({error.strerror})"
        ) from error
