"""What a model writes from its memory: lists of aspects, and the text again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clara_absa.configs.schema import PROMPTS, Example, Task
from clara_absa.data_utils.packing import Branch
from clara_absa.evaluation.metrics import extraction_f1, term_recall
from clara_absa.inference.sentiment import AspectSentiment
from latentlab_shared.metrics.summarization import RougeScorer
from latentlab_shared.text import words

OPINIONS = frozenset((
    "good", "great", "excellent", "amazing", "delicious", "nice", "best", "friendly", "attentive", "fresh",
    "perfect", "wonderful", "fantastic", "tasty", "lovely", "superb", "outstanding", "fabulous", "cozy",
    "reasonable", "helpful", "love", "loved", "enjoy", "enjoyed", "bad", "terrible", "awful", "horrible",
    "worst", "rude", "slow", "bland", "disappointing", "disappointed", "overpriced", "poor", "mediocre", "cold",
    "greasy", "dry", "expensive", "noisy", "cramped", "tasteless", "charming", "delightful", "dreadful",
))  # fmt: skip
"""Words of opinion whose survival in a restored text is counted."""


def measure_writing(answerer: AspectSentiment, examples: Sequence[Example]) -> dict[str, float]:
    """Extraction F1 (exact span and polarity) and how much of the texts the memory gives back.

    Returns:
        ``extraction_f1`` with precision and recall; ``token_accuracy`` of the text predicted token by token with the
        right beginning given; ``rouge_l``, ``aspect_recall`` and ``opinion_recall`` of the text written freely.
    """
    texts = [example.text for example in examples]
    memories = answerer.compress_batch(texts)
    found = answerer.extract_batch(memories, texts)
    spans = [[(r.aspect.start, r.aspect.end, str(r.polarity)) for r in each] for each in found]
    extraction = extraction_f1(spans, examples)
    restored = answerer.restore(memories)
    rouge = RougeScorer(["rougeL"]).f1(restored, texts)["rougeL"]
    return {
        **{f"extraction_{name}": value for name, value in extraction.items()},
        "token_accuracy": _token_accuracy(answerer, texts),
        "rouge_l": float(rouge.mean()),
        "aspect_recall": term_recall(restored, [[a.term for a in example.aspects] for example in examples]),
        "opinion_recall": term_recall(restored, [OPINIONS & set(words(text, lower=True)) for text in texts]),
    }


@torch.no_grad()
def _token_accuracy(answerer: AspectSentiment, texts: Sequence[str]) -> float:
    """Share of the texts' tokens that are the likeliest ones, the tokens before them given."""
    prompter, hits, total = answerer.batcher.prompter, 0, 0
    prompt = prompter.prompt(Task.RECONSTRUCTION)
    for start in range(0, len(texts), 64):
        some = texts[start : start + 64]
        vectors = [memory.vectors for memory in answerer.compress_batch(some)]
        said = [prompter.tokenizer.decode(list(prompter.text(text))) for text in some]
        answers = [prompter.answer(PROMPTS[Task.RECONSTRUCTION], text.strip()) for text in said]
        asked = [[Branch(prompt, (answer,), Task.RECONSTRUCTION)] for answer in answers]
        packed, table = answerer._on_memory(vectors, asked, None)
        logits = answerer.model.logits(packed.to(answerer.device), table.to(answerer.device))
        hits += int((logits.argmax(-1).cpu() == packed.targets).sum())
        total += len(packed.targets)
    return hits / total
