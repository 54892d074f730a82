"""Puzzles on graphs: shortest path, colouring, word ladder, maze."""

import heapq
import random
import string
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import ClassVar, Self, TypeVar

from typing_extensions import override

from m1.data_recipes.tasks.answers import labels, tokens
from m1.data_recipes.tasks.puzzle import Puzzle

Node = TypeVar("Node", bound=Hashable)
Edge = tuple[str, str]


def breadth_first(start: Node, goal: Node, near: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """Nodes of a path with the fewest steps; empty where there is none."""
    before: dict[Node, Node | None] = {start: None}
    waiting = deque([start])
    while waiting and goal not in before:
        here = waiting.popleft()
        for there in near(here):
            if there not in before:
                before[there] = here
                waiting.append(there)
    path: list[Node] = []
    step: Node | None = goal if goal in before else None
    while step is not None:
        path.append(step)
        step = before[step]
    return path[::-1]


def letters(count: int) -> list[str]:
    """The first capital letters, as names."""
    return list(string.ascii_uppercase[:count])


def connected_pairs(rng: random.Random, names: Sequence[str], extra: int) -> list[Edge]:
    """Edges of a random tree over `names` and up to `extra` more, each pair in order."""
    tree = [(names[rng.randrange(place)], names[place]) for place in range(1, len(names))]
    others = [pair for pair in combinations(names, 2) if pair not in tree]
    return sorted(tree + rng.sample(others, min(extra, len(others))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortestPath(Puzzle):
    """A path of least total length from the first to the last node."""

    SIZE: ClassVar[str] = "edges"
    nodes: int
    lengths: tuple[tuple[str, str, int], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        nodes = 4 + difficulty
        edges = connected_pairs(rng, letters(nodes), nodes // 2 + 1)
        return cls(nodes=nodes, lengths=tuple((a, b, rng.randint(1, 20)) for a, b in edges))

    @property
    @override
    def size(self) -> int:
        return len(self.lengths)

    @property
    def _ends(self) -> Edge:
        return "A", letters(self.nodes)[-1]

    def _near(self) -> dict[str, dict[str, int]]:
        near: dict[str, dict[str, int]] = {name: {} for name in letters(self.nodes)}
        for a, b, length in self.lengths:
            near[a][b] = near[b][a] = length
        return near

    def _best(self) -> tuple[int, list[str]]:
        """Length and nodes of a shortest path (Dijkstra)."""
        start, goal = self._ends
        near, done = self._near(), set[str]()
        heap: list[tuple[int, list[str]]] = [(0, [start])]
        while heap[0][1][-1] != goal:
            length, path = heapq.heappop(heap)
            if path[-1] not in done:
                done.add(path[-1])
                for there, more in near[path[-1]].items():
                    heapq.heappush(heap, (length + more, [*path, there]))
        return heap[0]

    @override
    def prompt(self) -> str:
        roads = "\n".join(f"{a} - {b}: {length}" for a, b, length in self.lengths)
        start, goal = self._ends
        return (
            f"Roads between places, with their lengths; each can be used both ways:\n{roads}\n"
            f"Find a shortest way from {start} to {goal}. Answer with its places in order, "
            "separated by spaces."
        )

    @override
    def steps(self) -> list[str]:
        near, total = self._near(), 0
        lines = []
        for a, b in pairwise(self._best()[1]):
            total += near[a][b]
            lines.append(f"{a} to {b}: {near[a][b]}, so far {total}")
        return lines

    @override
    def answer(self) -> str:
        return " ".join(self._best()[1])

    @override
    def accepts(self, text: str) -> bool:
        path, near = tokens(text), self._near()
        if not path or (path[0], path[-1]) != self._ends:
            return False
        if not all(b in near.get(a, {}) for a, b in pairwise(path)):
            return False
        return sum(near[a][b] for a, b in pairwise(path)) == self._best()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphColouring(Puzzle):
    """Colour the nodes with three colours so that no edge has two equal ends."""

    SIZE: ClassVar[str] = "nodes"
    edges: tuple[Edge, ...]
    colours: dict[str, str]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        names = sorted(rng.sample(string.ascii_uppercase, 5 + difficulty))
        colours = {
            name: str(1 + index % 3) for index, name in enumerate(rng.sample(names, len(names)))
        }
        mixed = [(a, b) for a, b in combinations(names, 2) if colours[a] != colours[b]]
        edges = rng.sample(mixed, 3 * len(names) // 2)
        return cls(edges=tuple(sorted(edges)), colours=dict(sorted(colours.items())))

    @property
    @override
    def size(self) -> int:
        return len(self.colours)

    @override
    def prompt(self) -> str:
        edges = ", ".join(f"{a}-{b}" for a, b in self.edges)
        return (
            f"Give each of the points {' '.join(self.colours)} one of the colours 1, 2, 3 so that "
            f"joined points differ. Joined are: {edges}\nAnswer like A:1 B:2, all points."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{a} is {self.colours[a]} and {b} is {self.colours[b]}" for a, b in self.edges]

    @override
    def answer(self) -> str:
        return " ".join(f"{name}:{colour}" for name, colour in self.colours.items())

    @override
    def accepts(self, text: str) -> bool:
        found = labels(text, list(self.colours))
        return (
            found is not None
            and set(found.values()) <= {"1", "2", "3"}
            and all(found[a] != found[b] for a, b in self.edges)
        )


def _one_apart(a: str, b: str) -> bool:
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WordLadder(Puzzle):
    """From word to word of a made-up language, changing one letter at a time."""

    SIZE: ClassVar[str] = "words of the language"
    words: tuple[str, ...]
    start: str
    goal: str

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        alphabet = rng.sample(string.ascii_lowercase, 6)
        ladder = ["".join(rng.choices(alphabet, k=4))]
        words = set(ladder)
        while len(words) < 4 + 3 * difficulty:
            grows_ladder = len(ladder) < 3 + difficulty
            word = list(ladder[-1] if grows_ladder else rng.choice(sorted(words)))
            word[rng.randrange(4)] = rng.choice(alphabet)
            if "".join(word) not in words:
                words.add("".join(word))
                ladder += ["".join(word)] if grows_ladder else []
        return cls(words=tuple(sorted(words)), start=ladder[0], goal=ladder[-1])

    @property
    @override
    def size(self) -> int:
        return len(self.words)

    def _ladder(self) -> list[str]:
        return breadth_first(
            self.start, self.goal, lambda word: [w for w in self.words if _one_apart(word, w)]
        )

    @override
    def prompt(self) -> str:
        return (
            f"The only words of a language are: {' '.join(self.words)}\nGo from {self.start} to "
            f"{self.goal}, changing one letter at a time, always to a word of the language. "
            "Answer with all words in order, the first and the last included."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"{a} to {b}: letter {next(i for i in range(4) if a[i] != b[i]) + 1}"
            for a, b in pairwise(self._ladder())
        ]

    @override
    def answer(self) -> str:
        return " ".join(self._ladder())

    @override
    def accepts(self, text: str) -> bool:
        ladder = tokens(text)
        if not ladder or (ladder[0], ladder[-1]) != (self.start, self.goal):
            return False
        return set(ladder) <= set(self.words) and all(_one_apart(a, b) for a, b in pairwise(ladder))


_MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Maze(Puzzle):
    """From the top left to the bottom right room; `walls` is drawn with #."""

    SIZE: ClassVar[str] = "rooms"
    walls: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 3 + difficulty
        board = [["#"] * (2 * side + 1) for _ in range(2 * side + 1)]
        growing = [(1, 1)]
        board[1][1] = "."
        while growing:
            here = -1 if rng.random() < 0.5 else rng.randrange(len(growing))
            row, column = growing[here]
            ways = [
                (dr, dc)
                for dr, dc in _MOVES.values()
                if 0 < row + 2 * dr < 2 * side + 1
                and 0 < column + 2 * dc < 2 * side + 1
                and board[row + 2 * dr][column + 2 * dc] == "#"
            ]
            if not ways:
                growing.pop(here)
                continue
            dr, dc = rng.choice(ways)
            board[row + dr][column + dc] = board[row + 2 * dr][column + 2 * dc] = "."
            growing.append((row + 2 * dr, column + 2 * dc))
        return cls(walls=tuple("".join(row) for row in board))

    @property
    @override
    def size(self) -> int:
        return (len(self.walls) // 2) ** 2

    def _near(self, cell: tuple[int, int]) -> list[tuple[int, int]]:
        places = [(cell[0] + dr, cell[1] + dc) for dr, dc in _MOVES.values()]
        return [(r, c) for r, c in places if self.walls[r][c] == "."]

    def _moves(self) -> str:
        last = len(self.walls) - 2
        path = breadth_first((1, 1), (last, last), self._near)
        name_of = {step: name for name, step in _MOVES.items()}
        return "".join(name_of[b[0] - a[0], b[1] - a[1]] for a, b in pairwise(path))

    @override
    def prompt(self) -> str:
        board = "\n".join(self.walls)
        return (
            "Walk from the top left free cell to the bottom right free cell; # is a wall. Each "
            f"move goes one cell: U up, D down, L left, R right.\n{board}\n"
            "Answer with the moves, like RRDD."
        )

    @override
    def steps(self) -> list[str]:
        row, column = 1, 1
        lines = []
        for move in self._moves():
            row, column = row + _MOVES[move][0], column + _MOVES[move][1]
            lines.append(f"{move} to row {row + 1}, column {column + 1}")
        return lines

    @override
    def answer(self) -> str:
        return self._moves()

    @override
    def accepts(self, text: str) -> bool:
        row, column = 1, 1
        for move in "".join(tokens(text)):
            if move not in _MOVES:
                return False
            row, column = row + _MOVES[move][0], column + _MOVES[move][1]
            if self.walls[row][column] == "#":
                return False
        return row == column == len(self.walls) - 2
