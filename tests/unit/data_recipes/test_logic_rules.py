"""Claims about single rules of puzzles: answers that break exactly one of them fail."""

import itertools
import random

import pytest

from m1.data_recipes.tasks.logic.arithmetic import Cryptarithm
from m1.data_recipes.tasks.logic.graphs import GraphColouring, WordLadder
from m1.data_recipes.tasks.logic.jobs import Pairing
from m1.data_recipes.tasks.logic.latin import Futoshiki, Skyscraper
from m1.data_recipes.tasks.logic.machines import RiverCrossing
from m1.data_recipes.tasks.logic.placement import Campsite, StarPlacement
from m1.data_recipes.tasks.puzzle import Puzzle

SQUARE = ((1, 2), (2, 1))
SUM = Cryptarithm(first=12, second=13, digits={"A": 1, "B": 2, "C": 3, "D": 5})
COLOURS = GraphColouring(edges=(("A", "B"),), colours={"A": "1", "B": "2"})
LADDER = WordLadder(words=("aaaa", "aaab", "aabb"), start="aaaa", goal="aabb")
PAIRS = Pairing(able={"A": (1, 2), "B": (1, 2)}, solution={"A": 1, "B": 2})
SIGNS = Futoshiki(givens=((0, 0), (0, 0)), less=(((0, 0), (0, 1)),), solution=SQUARE)
GIVEN = Futoshiki(givens=((1, 0), (0, 0)), less=(), solution=SQUARE)
TOWERS = Skyscraper(
    givens=((0, 0), (0, 0)), views=((2, 1), (1, 2), (2, 1), (1, 2)), solution=SQUARE
)
BOAT = RiverCrossing(goods="AB", keepers="A", conflicts=("AB",))


@pytest.mark.parametrize(
    ("puzzle", "right", "wrong"),
    [
        pytest.param(SUM, "A:1 B:2 C:3 D:5", "A:1 B:2 C:3 D:6", id="sum"),
        pytest.param(SUM, "A:2 B:4 C:1 D:5", "A:1 B:2 C:2 D:4", id="equal-digits"),
        pytest.param(COLOURS, "A:2 B:3", "A:1 B:1", id="equal-ends"),
        pytest.param(COLOURS, "A:3 B:1", "A:1 B:4", id="fourth-colour"),
        pytest.param(LADDER, "aaaa aaab aabb", "aaaa aabb", id="two-letters-at-once"),
        pytest.param(LADDER, "aaaa aaab aabb", "aaaa aaba aabb", id="no-word-of-the-language"),
        pytest.param(PAIRS, "A:2 B:1", "A:1 B:1", id="task-given-twice"),
        pytest.param(SIGNS, "1 2 2 1", "2 1 1 2", id="inequality"),
        pytest.param(SIGNS, "1 2\n2 1", "1 2 1 2", id="column-repeats"),
        pytest.param(GIVEN, "1 2 2 1", "2 1 1 2", id="given-number"),
        pytest.param(TOWERS, "1 2 2 1", "2 1 1 2", id="views"),
        pytest.param(BOAT, "AB", "A", id="goods-left-behind"),
        pytest.param(BOAT, "AB", "AB AB", id="back-again"),
        pytest.param(BOAT, "AB", "- - AB A", id="conflict-when-the-boat-comes-back"),
    ],
)
def test_breaking_one_rule_fails(puzzle: Puzzle, right: str, wrong: str) -> None:
    assert puzzle.accepts(right)
    assert not puzzle.accepts(wrong)


def test_stars_are_accepted_exactly_where_all_rules_hold() -> None:
    for seed in range(4):
        puzzle = StarPlacement.draw(random.Random(seed), 1)
        board = puzzle.prompt().splitlines()[1:6]
        for columns in itertools.product(range(5), repeat=5):
            stars = list(enumerate(columns))
            apart = all(
                max(abs(r - a), abs(c - b)) > 1
                for (r, c), (a, b) in itertools.combinations(stars, 2)
            )
            regions = {board[r][c] for r, c in stars}
            fits = apart and len(set(columns)) == 5 and len(regions) == 5
            assert puzzle.accepts(" ".join(str(c + 1) for c in columns)) == fits


def test_tents_are_accepted_exactly_where_all_rules_hold() -> None:
    for seed in range(3):
        puzzle = Campsite.draw(random.Random(seed), 1)
        lines = puzzle.prompt().splitlines()
        cells = list(itertools.product(range(5), repeat=2))
        trees = [(r, c) for r, c in cells if lines[1 + r][c] == "T"]
        rows, columns = ([int(n) for n in lines[i].split(": ")[1].split()] for i in (6, 7))
        for tents in itertools.combinations(cells, 3):
            fits = (
                not set(tents) & set(trees)
                and [sum(r == i for r, _ in tents) for i in range(5)] == rows
                and [sum(c == i for _, c in tents) for i in range(5)] == columns
                and all(
                    max(abs(r - a), abs(c - b)) > 1
                    for (r, c), (a, b) in itertools.combinations(tents, 2)
                )
                and any(
                    all(
                        abs(r - a) + abs(c - b) == 1
                        for (r, c), (a, b) in zip(tents, p, strict=True)
                    )
                    for p in itertools.permutations(trees)
                )
            )
            assert puzzle.accepts("\n".join(f"{r + 1} {c + 1}" for r, c in tents)) == fits
