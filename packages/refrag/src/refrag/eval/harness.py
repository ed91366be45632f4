"""lm-evaluation-harness: this model for its tasks, and our questions as a task of its own (extra ``lm-eval``).

A prompt's documents stand between ``<doc id="…">`` tags, as everywhere; they are read as vectors, with some chunks as
tokens. A prompt without documents is read as tokens, so the harness's own tasks measure the decoder beneath.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from latentlab_shared.errors import NeedsExtra
from latentlab_shared.metrics.classification import exact_match, token_f1
from refrag.data.questions import QuestionExample
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc, escape, parse_segments
from refrag.model.gate import Budget
from refrag.training.objectives import ContinuationObjective

_NEW_TOKENS = 32


def run_harness(
    generator: RefragGenerator,
    tasks: Sequence[Any],
    *,
    budget: Budget | None = None,
    compression: int | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures of a model by task.

    Args:
        generator: the model.
        tasks: names that the harness knows, or what ``questions_task`` makes.
        budget: what may be expanded; None for nothing.
        compression: another k than the tokenizer's own.
        limit: rows of each task at most.

    Raises:
        NeedsExtra: without lm-eval.
    """
    evaluator = _needed("lm_eval.evaluator")
    model = harness_model(generator, budget=budget, compression=compression)
    found = evaluator.simple_evaluate(model, tasks=list(tasks), limit=limit, bootstrap_iters=0, log_samples=False)
    results: dict[str, dict[str, Any]] = found["results"]
    return results


def harness_model(generator: RefragGenerator, *, budget: Budget | None = None, compression: int | None = None) -> Any:
    """A model as the harness wants one: ``loglikelihood``, ``loglikelihood_rolling``, ``generate_until``.

    Args:
        generator: the model.
        budget: what may be expanded; None for nothing.
        compression: another k than the tokenizer's own.

    Raises:
        NeedsExtra: without lm-eval.
    """
    base = _needed("lm_eval.api.model").LM
    made: Any = type("RefragLM", (_Reader, base), {})
    return made(generator, budget, compression)


class _Reader:
    """The three questions that the harness asks; what else it wants is its own base class's."""

    def __init__(self, generator: RefragGenerator, budget: Budget | None, compression: int | None) -> None:
        super().__init__()
        self.generator, self.model, self.tokenizer = generator, generator.model, generator.tokenizer
        self.options: dict[str, Any] = {"budget": budget, "compression": compression}
        self.objective = ContinuationObjective(self.model, self.tokenizer).eval()
        words: Any = self.tokenizer.decoder_tokenizer
        self.first = int(words.bos_token_id if words.bos_token_id is not None else words.eos_token_id)

    def _prompt(self, text: str) -> Tensor:
        question, docs = _split(text)
        if docs:
            return self.generator.window(question, docs, **self.options).embeddings
        return self.model.embed(self.tokenizer.decoder_ids(text) or [self.first])

    @torch.no_grad()
    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation after its prompt, and whether it is what greedy search would write."""
        found = []
        for context, continuation in (request.args for request in requests):
            target = self.tokenizer.decoder_ids(continuation)
            nats, right = self.objective.scored_after([self._prompt(context)], [target])
            found.append((-float(nats) * len(target), int(right) == len(target)))
        return found

    @torch.no_grad()
    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of as many tokens as the decoder has positions for."""
        windows, room = _needed("lm_eval.utils"), self.model.room or 2048
        sums = []
        for (text,) in (request.args for request in requests):
            parts = windows.get_rolling_token_windows(
                token_list=self.tokenizer.decoder_ids(text), prefix_token=self.first, max_seq_len=room, context_len=1
            )
            total = 0.0
            for before, target in map(windows.make_disjoint_window, parts):
                nats = self.objective.after([self.model.embed(before)], [target])
                total -= float(nats) * len(target)
            sums.append(total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to each prompt, up to the first of its stops."""
        found = []
        for context, settings in (request.args for request in requests):
            question, docs = _split(context)
            new = int(settings.get("max_gen_toks", _NEW_TOKENS))
            text = self.generator.answer(question, docs, generation=greedy(new), **self.options).text
            for stop in settings.get("until", ()):
                text = text.split(stop)[0] if stop else text
            found.append(text)
        return found


def questions_task(examples: Sequence[QuestionExample], name: str = "refrag_questions") -> Any:
    """Questions with documents as a task of the harness: exact match and F1 of the answer, and the right citation.

    Raises:
        NeedsExtra: without lm-eval.
    """
    task, datasets = _needed("lm_eval.api.task"), _needed("datasets")
    rows = [
        {
            "prompt": "".join(_tagged(doc) for doc in example.docs) + example.question,
            "answers": [example.answer, example.value, *example.also],
            "gold": example.gold,
        }
        for example in examples
    ]
    figures = ("exact", "f1", "gold_cited")
    return task.ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": lambda row: row["prompt"],
            "doc_to_target": lambda row: row["answers"][0],
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": _NEW_TOKENS, "do_sample": False},
            "process_results": _figures,
            "metric_list": [{"metric": f, "aggregation": mean, "higher_is_better": True} for f in figures],
            "metadata": {"version": 1},
        }
    )


def _figures(row: dict[str, Any], written: Sequence[str]) -> dict[str, float]:
    """Of one answer; a citation is no part of what is said."""
    text = written[0]
    said, _, cited = text.partition("[")
    answers = [answer.partition("[")[0] for answer in row["answers"]]
    return {
        "exact": float(exact_match(said, answers)),
        "f1": token_f1(said, answers),
        "gold_cited": float(cited.partition("]")[0] == row["gold"]),
    }


def _tagged(doc: Doc) -> str:
    title = f' title="{escape(doc.title)}"' if doc.title else ""
    return f'<doc id="{escape(doc.id)}"{title}>{escape(doc.text)}</doc>'


def _split(text: str) -> tuple[str, list[Doc]]:
    """The text outside of documents, and the documents; without an id they are counted."""
    segments = parse_segments(text)
    tagged = [segment for segment in segments if segment["type"] == "encoder"]
    docs = [
        Doc(segment["meta"].get("id") or str(n), segment["raw_text"], segment["meta"].get("title"))
        for n, segment in enumerate(tagged, start=1)
    ]
    return "".join(s["raw_text"] for s in segments if s["type"] == "decoder").strip(), docs


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise NeedsExtra("lm-eval", "lm-eval", "latentlab-refrag") from None
