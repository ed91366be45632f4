"""The questions of the command line: one text or many, with aspects, marks, a memory, or nothing but the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clara_absa.configs.schema import AspectSentimentResult
from clara_absa.data_utils.readers import parse_inline
from clara_absa.inference.memory import Memory
from clara_absa.inference.sentiment import Asked, AspectSentiment, Mode
from latentlab_shared.errors import UserError

Answers = list[tuple[str, list[AspectSentimentResult]]]


def ask(
    answerer: AspectSentiment,
    texts: Mapping[str, str],
    aspects: Sequence[Asked],
    memory: Memory | None = None,
    *,
    mode: str = "score",
    size: int | None = None,
    abstain: float = 0.0,
) -> Answers:
    """Answer about each text.

    Args:
        answerer: the model.
        texts: where each stands, for an error, and the text; ``[B-ASP]food[E-ASP]`` marks in it name its aspects.
        aspects: asked of every text; without them, and without marks, the model looks for aspects itself.
        memory: instead of texts.
        mode: see `AspectSentiment.predict`.
        size: use only the first memory vectors.
        abstain: below this probability there is no answer.
    """
    if mode not in ("score", "generate"):
        raise UserError(f"{mode!r} is not a mode", "--mode", "Use score or generate")
    chosen: Mode = "generate" if mode == "generate" else "score"
    if memory is not None:
        if aspects:
            found = answerer.predict(aspects=aspects, memory=memory, size=size, abstain=abstain, mode=chosen)
        else:
            found = answerer.extract(memory.text, memory=memory, abstain=abstain)
        return [(memory.text, found)]
    plain: list[str] = []
    asked: list[Sequence[Asked]] = []
    for where, text in texts.items():
        bare, spans, _ = parse_inline(text, where)
        plain.append(bare)
        asked.append([*aspects, *spans])
    if all(asked):
        questions = list(zip(plain, asked, strict=True))
        answers = answerer.predict_batch(questions, size=size, abstain=abstain, mode=chosen)
        return list(zip(plain, answers, strict=True))
    if any(asked):
        raise UserError(
            "some texts have marked aspects and some have none", "predict", "Mark all, none, or use --aspect"
        )
    memories = answerer.compress_batch(plain)
    return list(zip(plain, answerer.extract_batch(memories, plain, abstain=abstain), strict=True))
