"""Logic puzzles by kind: 41 families, each with a generator, a solution and an exact checker.

The number follows M1 section 4.1 (SynLogic trains on 41 tasks); which ones is ours. Rules, wording
and code are our own.
"""

from m1.data_recipes.tasks.logic import (
    arithmetic,
    calculation,
    deduction,
    graphs,
    jobs,
    latin,
    machines,
    pictures,
    placement,
    sums,
    symbols,
    zebra,
)
from m1.data_recipes.tasks.puzzle import Puzzle, PuzzleFamily

_KINDS: dict[str, type[Puzzle]] = {
    "sudoku": latin.Sudoku,
    "futoshiki": latin.Futoshiki,
    "skyscraper": latin.Skyscraper,
    "calcudoku": latin.Calcudoku,
    "magic_square": sums.MagicSquare,
    "survo": sums.Survo,
    "kakuro": sums.Kakuro,
    "countdown": arithmetic.Countdown,
    "cryptarithm": arithmetic.Cryptarithm,
    "star_placement": placement.StarPlacement,
    "campsite": placement.Campsite,
    "minesweeper": placement.Minesweeper,
    "nonogram": pictures.Nonogram,
    "queens": pictures.Queens,
    "shortest_path": graphs.ShortestPath,
    "graph_colouring": graphs.GraphColouring,
    "word_ladder": graphs.WordLadder,
    "maze": graphs.Maze,
    "scheduling": jobs.Scheduling,
    "pairing": jobs.Pairing,
    "knights_and_knaves": deduction.KnightsAndKnaves,
    "web_of_lies": deduction.WebOfLies,
    "zebra": zebra.Zebra,
    "satisfiability": deduction.Satisfiability,
    "ranking": deduction.Ranking,
    "seating": deduction.Seating,
    "dyck_completion": symbols.DyckCompletion,
    "word_sorting": symbols.WordSorting,
    "cipher": symbols.Cipher,
    "boolean_expressions": symbols.BooleanExpressions,
    "new_operator": calculation.NewOperator,
    "base_conversion": calculation.BaseConversion,
    "set_operations": calculation.SetOperations,
    "object_counting": calculation.ObjectCounting,
    "calendar": calculation.Calendar,
    "free_time": jobs.FreeTime,
    "hanoi": machines.Hanoi,
    "river_crossing": machines.RiverCrossing,
    "stack_machine": machines.StackMachine,
    "cellular_automaton": machines.CellularAutomaton,
    "space_walk": machines.SpaceWalk,
}

LOGIC_FAMILIES: tuple[PuzzleFamily, ...] = tuple(
    PuzzleFamily(name=name, kind=kind) for name, kind in _KINDS.items()
)

__all__ = ["LOGIC_FAMILIES"]
