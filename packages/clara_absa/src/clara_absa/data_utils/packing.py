"""Texts laid side by side in rows, with marks that say which token may see which.

A sentence is a tree. Its trunk is what is read: text tokens, or memory slots. Its branches are the questions, and the
leaves of a branch are its possible answers. A token sees its own trunk, its own branch and its own leaf, up to itself:
so a trunk is computed once for all questions, and a question once for all its answers. Sentences in one row do not see
each other. Positions run on along each path from the trunk to a leaf, as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from clara_absa.configs.schema import Task

TASKS: tuple[Task, ...] = tuple(Task)


@dataclass(frozen=True)
class Branch:
    """A question about a sentence.

    Attributes:
        prompt: its tokens, one at least.
        answers: tokens of each answer whose probability is wanted, one at least in each.
        task: what is asked.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    task: Task = Task.REASONING


@dataclass(frozen=True)
class Tree:
    """A sentence with its questions.

    Attributes:
        trunk: token ids; ``-1 - i`` stands for vector ``i`` of a table that comes with the batch.
        branches: the questions.
    """

    trunk: tuple[int, ...]
    branches: tuple[Branch, ...] = ()

    @property
    def size(self) -> int:
        """Tokens in a row; the last token of an answer is predicted and never read."""
        leaves = sum(len(b.prompt) + sum(len(answer) - 1 for answer in b.answers) for b in self.branches)
        return len(self.trunk) + leaves


@dataclass(frozen=True)
class Packed:
    """Trees in R rows of L tokens, with P tokens to predict, in A answers.

    Attributes:
        ids: token ids, ``-1 - i`` for vector i of the table, 0 for padding, (R, L).
        positions: place of each token on its path, (R, L).
        tree: index of its tree, -1 for padding, (R, L).
        branch: 0 in a trunk, else the branch from 1, (R, L).
        leaf: 0 outside of leaves, else the leaf from 1, (R, L).
        slots: flat places (in R * L) of the vectors, tree by tree, (V,).
        sources: flat place from which a token is predicted, (P,).
        targets: the token, (P,).
        answer: which answer it belongs to, (P,).
        tasks: index in ``TASKS`` of each answer, (A,).
    """

    ids: Tensor
    positions: Tensor
    tree: Tensor
    branch: Tensor
    leaf: Tensor
    slots: Tensor
    sources: Tensor
    targets: Tensor
    answer: Tensor
    tasks: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def task_tokens(self) -> Tensor:
        """Tokens to predict in each task, (len(TASKS),)."""
        return torch.bincount(self.tasks[self.answer], minlength=len(TASKS))

    def visible(self, both_ways: bool = False) -> Tensor:
        """Which token sees which, (R, 1, L, L) bool: row i of the last two is the token that looks.

        Args:
            both_ways: text tokens of a trunk also see later text tokens of it.
        """
        length = self.ids.shape[1]
        tree, branch, leaf = self.tree, self.branch, self.leaf
        same = tree[:, :, None] == tree[:, None, :]  # (R, L, L)
        order = torch.ones(length, length, dtype=torch.bool, device=tree.device).tril()[None]
        if both_ways:
            text = (self.ids >= 0) & (branch == 0)
            order = order | (text[:, :, None] & text[:, None, :])
        on_path = ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])) & (
            (leaf[:, None, :] == 0) | (leaf[:, None, :] == leaf[:, :, None])
        )
        # Padding (-1) sees padding: a row of the mask without any True would give NaN.
        return (same & order & on_path)[:, None]


def _flatten(tree: Tree) -> Iterator[tuple[int, int, int, int]]:
    """(id, position, branch, leaf) of each token of a tree."""
    for position, token in enumerate(tree.trunk):
        yield token, position, 0, 0
    for number, branch in enumerate(tree.branches, 1):
        start = len(tree.trunk)
        for position, token in enumerate(branch.prompt, start):
            yield token, position, number, 0
        start += len(branch.prompt)
        for leaf, answer in enumerate(branch.answers, 1):
            for position, token in enumerate(answer[:-1], start):
                yield token, position, number, leaf


def _predictions(tree: Tree) -> Iterator[tuple[int, int, bool]]:
    """(place in the tree, token to predict there, whether it begins an answer)."""
    at = len(tree.trunk)
    for branch in tree.branches:
        asked = at + len(branch.prompt) - 1
        at += len(branch.prompt)
        for answer in branch.answers:
            yield asked, answer[0], True
            for token in answer[1:]:
                yield at, token, False
                at += 1


def place(sizes: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Which items share a row: first fit, longest first; an item longer than a row gets one of its own length."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        row = next((r for r, free in enumerate(room) if free >= sizes[index]), None)
        if row is None:
            rows.append([])
            room.append(max(row_tokens, sizes[index]))
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= sizes[index]
    return rows


def pack(trees: Sequence[Tree], row_tokens: int = 256) -> Packed:
    """Lay trees out in rows of at most ``row_tokens``, or of the longest tree's length.

    Answers are numbered in the order of trees, branches and their answers, wherever a tree comes to lie.
    """
    rows = place([tree.size for tree in trees], row_tokens)
    length = max((sum(trees[i].size for i in row) for row in rows), default=1)
    grid = torch.zeros(5, max(len(rows), 1), length, dtype=torch.long)  # ids, positions, branch, leaf, tree
    grid[4] = -1
    start_of = [0] * len(trees)
    for r, row in enumerate(rows):
        column = 0
        for index in row:
            start_of[index] = r * length + column
            tokens = torch.tensor(list(_flatten(trees[index])), dtype=torch.long).reshape(-1, 4).T
            grid[:4, r, column : column + tokens.shape[1]] = tokens
            grid[4, r, column : column + tokens.shape[1]] = index
            column += tokens.shape[1]
    slots, sources, targets, answer, tasks = [], list[int](), list[int](), list[int](), list[int]()
    for start, tree in zip(start_of, trees, strict=True):
        slots += [start + i for i, token in enumerate(tree.trunk) if token < 0]
        tasks_here = [TASKS.index(branch.task) for branch in tree.branches for _ in branch.answers]
        number = len(tasks) - 1
        for at, token, begins in _predictions(tree):
            number += begins
            sources.append(start + at)
            targets.append(token)
            answer.append(number)
        tasks += tasks_here
    flat = (torch.tensor(values, dtype=torch.long) for values in (slots, sources, targets, answer, tasks))
    return Packed(grid[0], grid[1], grid[4], grid[2], grid[3], *flat)
