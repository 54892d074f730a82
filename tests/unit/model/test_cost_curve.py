"""The compute curve of the M1 paper (figure 1, right), read off the figure: facts 6.8."""

import pytest

from m1.model.config import ModelConfig
from m1.model.cost.compute_curve import (
    CURVE_TOKENS,
    DEEPSEEK_R1,
    compute_curve,
    hybrid_generation_flops,
    latent_generation_flops,
)
from m1.model.cost.flops import decode_flops_per_token

M1 = ModelConfig()
# 1e16 FLOPs at 16K, 32K, ... 128K tokens
PAPER_R1 = (0.218, 0.623, 1.216, 1.997, 2.966, 4.122, 5.467, 6.998)
PAPER_M1 = (0.177, 0.364, 0.562, 0.770, 0.988, 1.218, 1.458, 1.708)
PAPER = list(zip(CURVE_TOKENS, PAPER_M1, PAPER_R1, strict=True))


def test_deepseek_r1_has_its_published_size() -> None:
    assert DEEPSEEK_R1.total == pytest.approx(671e9, rel=1e-3)
    ends = 2 * DEEPSEEK_R1.vocabulary_size * DEEPSEEK_R1.hidden_size
    assert DEEPSEEK_R1.active + ends == pytest.approx(37e9, rel=0.02)


@pytest.mark.parametrize(("tokens", "m1", "r1"), PAPER)
def test_counted_as_the_figure_seems_to_both_curves_are_within_a_tenth(
    tokens: int, m1: float, r1: float
) -> None:
    (point,) = compute_curve(M1, accounting="figure", lengths=[tokens])

    assert point.model == pytest.approx(m1 * 1e16, rel=0.10)
    assert point.deepseek_r1 == pytest.approx(r1 * 1e16, rel=0.02)
    assert point.ratio == pytest.approx(m1 / r1, rel=0.08)


@pytest.mark.parametrize(("tokens", "m1", "r1"), PAPER)
def test_by_causal_count_m1_and_the_ratio_are_within_a_fifth_of_the_paper(
    tokens: int, m1: float, r1: float
) -> None:
    (point,) = compute_curve(M1, lengths=[tokens])

    assert point.model == pytest.approx(m1 * 1e16, rel=0.20)
    assert point.ratio == pytest.approx(m1 / r1, rel=0.20)


def test_by_causal_count_r1_costs_up_to_a_quarter_less_than_in_the_paper() -> None:
    counted = [point.deepseek_r1 / 1e16 for point in compute_curve(M1)]

    shares = [ours / paper for ours, paper in zip(counted, PAPER_R1, strict=True)]
    assert min(shares) == pytest.approx(0.75, abs=0.01)
    assert max(shares) == pytest.approx(0.86, abs=0.01)


def test_the_quadratic_term_of_the_figure_is_scores_by_half_and_values_whole() -> None:
    # second difference of a quadratic; a least-squares fit of the figure's points gives 3.497e6
    low, middle, high = (
        latent_generation_flops(DEEPSEEK_R1, tokens=n, accounting="figure") for n in (0, 1, 2)
    )

    assert (high - 2 * middle + low) / 2 == pytest.approx(3.498e6, rel=1e-3)


def test_a_generation_costs_the_sum_of_its_decoding_steps() -> None:
    tokens = 2000
    steps = sum(decode_flops_per_token(M1, context_tokens=n) for n in range(tokens))

    assert hybrid_generation_flops(M1, tokens=tokens) == pytest.approx(steps, rel=1e-4)


def test_the_published_claims_hold() -> None:
    at_64k, at_100k = compute_curve(M1, accounting="figure", lengths=[65_536, 100_000])

    assert at_64k.ratio < 0.5
    assert at_100k.ratio == pytest.approx(0.25, abs=0.05)
