"""Answers to questions whose documents are known: what is right, what is cited, and what reading costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from latentlab_shared.errors import UserError
from latentlab_shared.metrics.classification import exact_match, normalise_answer, token_f1
from refrag.data.questions import QuestionExample
from refrag.eval.selection import cosine_scores, perplexity_scores, random_scores
from refrag.inference.generator import Answer, Cite, RefragGenerator, greedy
from refrag.model.gate import Budget
from refrag.training.objectives import ContinuationObjective
from refrag.training.questions import prepare

_CITED = re.compile(r"\s*\[[^\[\]]*\]")
SELECTIONS = ("gate", "random", "perplexity down", "perplexity up", "cosine", "oracle")
"""Who chooses what is expanded: the gate, and what it has to beat; the oracle knows where the evidence stands."""


@dataclass(frozen=True)
class Way:
    """A way to give the documents.

    Attributes:
        name: of its row.
        budget: what may be expanded; None for nothing.
        selection: one of ``SELECTIONS``; None leaves the choice to the budget alone.
        documents: False leaves them out.
        cite: who decides which document a citation names.
    """

    name: str
    budget: Budget | None
    selection: str | None = None
    documents: bool = True
    cite: Cite = "evidence"


def ways(fractions: Sequence[float], selections: Sequence[str] = SELECTIONS) -> list[Way]:
    """No documents, all of their tokens, vectors only, and each selection at each share of expanded chunks.

    Beside the gate stands, at each share, what the decoder cites when it is left to itself.
    """
    fixed = [
        Way("no documents", None, documents=False),
        Way("all tokens", Budget(fraction=1.0)),
        Way("vectors only", None),
    ]
    for share in fractions:
        fixed += [Way(f"{name} {share:g}", Budget(fraction=share), name) for name in selections]
        if "gate" in selections:
            fixed.append(Way(f"gate {share:g}, decoder cites", Budget(fraction=share), "gate", cite="decoder"))
    return fixed


@torch.no_grad()
def evaluate_answers(
    generator: RefragGenerator,
    examples: Sequence[QuestionExample],
    chosen: Sequence[Way],
    *,
    compression: int | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """One row per way, over the same questions.

    Args:
        generator: the model.
        examples: held out.
        chosen: ways to give the documents; the first row of ``ways`` and "all tokens" are needed for ``gap_closed``.
        compression: another k than the tokenizer's own.
        max_new_tokens: of an answer.
        batch_size: questions side by side.
        seed: of the random selection.
        log: told what is going on.

    Returns:
        Rows with ``name`` and: ``exact`` (the whole statement, or a right value), ``f1``, ``value`` (stands in the
        answer), ``cited_right`` (precision), ``gold_cited`` (recall), ``invalid`` (ids that were not given, a count),
        ``supported`` (the statement stands in the cited document), ``nats`` (per token of the right answer),
        ``positions`` (mean, that the decoder read) and ``gap_closed`` (of the nats, between no documents and all
        tokens).

    Raises:
        UserError: if there are no questions.
    """
    if not examples:
        raise UserError("there are no questions", "data")
    objective = ContinuationObjective(generator.model, generator.tokenizer).eval()
    targets = [prepare(e, generator.tokenizer, compression).target for e in examples]
    rated = _rated(generator, examples, {way.selection for way in chosen}, compression, seed)
    rows = []
    for way in chosen:
        log(way.name)
        scores = rated.get(way.selection or "")
        asked = [(e.question, e.docs if way.documents else ()) for e in examples]
        answers: list[Answer] = []
        nats: list[float] = []
        for at in range(0, len(asked), batch_size):
            part = asked[at : at + batch_size]
            some = scores[at : at + batch_size] if scores is not None else None
            answers += generator.answer_many(
                part,
                budget=way.budget,
                scores=some,
                compression=compression,
                cite=way.cite,
                generation=greedy(max_new_tokens),
            )
            prompts = [
                generator.window(
                    q, d, budget=way.budget, scores=None if some is None else some[n], compression=compression
                ).embeddings
                for n, (q, d) in enumerate(part)
            ]
            nats += objective.after(prompts, targets[at : at + batch_size]).tolist()
        rows.append({"name": way.name, **score(examples, answers), "nats": mean(nats)})
    named = {row["name"]: row["nats"] for row in rows}
    if {"no documents", "all tokens"} <= named.keys():
        none, full = named["no documents"], named["all tokens"]
        for row in rows:
            row["gap_closed"] = (none - row["nats"]) / (none - full)
    return rows


def those_that_fit(
    generator: RefragGenerator,
    examples: Sequence[QuestionExample],
    compression: int | None = None,
    max_new_tokens: int = 32,
) -> list[QuestionExample]:
    """The questions whose documents, given as tokens, and whose answers the decoder has the positions for.

    Ways of giving documents are compared over the same questions, so one that no decoder of this size can read whole
    is left out of all of them.

    Args:
        generator: the model.
        examples: held out.
        compression: another k than the tokenizer's own.
        max_new_tokens: of an answer.
    """
    room = generator.model.room
    if room is None:
        return list(examples)
    found = []
    for example in examples:
        whole = generator.window(example.question, example.docs, budget=None, compression=compression).full_length
        right = len(prepare(example, generator.tokenizer, compression).target)
        if whole + max(right, max_new_tokens) <= room:
            found.append(example)
    return found


def score(examples: Sequence[QuestionExample], answers: Sequence[Answer]) -> dict[str, Any]:
    """Means over questions; precision and recall of citations over all of them together."""
    exact, f1, value, supported = [], [], [], []
    cited = right = found = invalid = 0
    for example, answer in zip(examples, answers, strict=True):
        said = _CITED.sub("", answer.text).strip()
        wanted = (_CITED.sub("", example.answer), example.value, *example.also)
        values = (example.value, *example.also)
        exact.append(float(exact_match(said, wanted)))
        f1.append(token_f1(said, wanted))
        padded = f" {normalise_answer(said)} "
        value.append(float(any(f" {normalise_answer(v)} " in padded for v in values)))
        names = [citation.doc for citation in answer.citations]
        given = {doc.id: doc.text for doc in example.docs}
        invalid += sum(name not in given for name in re.findall(r"\[([^\[\]]*)\]", answer.text))
        cited += len(names)
        right += sum(name == example.gold for name in names)
        found += example.gold in names
        supported.append(
            float(
                bool(said)
                and any(f" {normalise_answer(said)} " in f" {normalise_answer(given[name])} " for name in names)
            )
        )
    return {
        "exact": mean(exact),
        "f1": mean(f1),
        "value": mean(value),
        "cited_right": right / cited if cited else 0.0,
        "gold_cited": found / len(examples),
        "invalid": invalid,
        "supported": mean(supported),
        "positions": mean(answer.window_length for answer in answers),
    }


def _rated(
    generator: RefragGenerator,
    examples: Sequence[QuestionExample],
    wanted: set[str | None],
    compression: int | None,
    seed: int,
) -> Mapping[str, list[list[float]]]:
    """Scores of every question's chunks by selection; the gate makes its own."""
    tokenizer = generator.tokenizer
    found: dict[str, list[list[float]]] = {}
    if "random" in wanted:
        counts = [sum(len(tokenizer.chunks(doc.text, compression)) for doc in e.docs) for e in examples]
        found["random"] = [random_scores(count, seed + n) for n, count in enumerate(counts)]
    if wanted & {"perplexity down", "perplexity up"}:
        found["perplexity down"] = [perplexity_scores(generator, e.docs, compression) for e in examples]
        found["perplexity up"] = [[-score for score in row] for row in found["perplexity down"]]
    if "cosine" in wanted:
        found["cosine"] = [cosine_scores(generator, e.question, e.docs, compression) for e in examples]
    if "oracle" in wanted:
        found["oracle"] = [[float(held) for held in prepare(e, tokenizer, compression).evidence] for e in examples]
    return found
