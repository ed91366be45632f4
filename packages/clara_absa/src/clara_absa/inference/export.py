"""A model as one plain folder that needs no adapter library, checked against the original's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from clara_absa.configs.schema import AspectSentimentResult
from clara_absa.inference.sentiment import AspectSentiment
from clara_absa.model.folder import find_model
from clara_absa.sample.generator import generate
from latentlab_shared.errors import RunFailed, UserError

_TOLERANCE = 1e-3  # merging adds two products in another order


def export_model(model: Path, output: Path) -> list[dict[str, Any]]:
    """Write a model whose adapter is merged into its backbone.

    Args:
        model: a run folder, or a saved model.
        output: the folder; `AspectSentiment.from_pretrained` reads it too.

    Returns:
        For each file its path and size, and the largest difference of a probability in any answer.

    Raises:
        UserError: for a folder that holds anything but an earlier export, and for one adapter per role: two adapters
            cannot be merged into one backbone.
        RunFailed: if the exported model answers otherwise.
    """
    output = Path(output)
    inside = find_model(model).resolve() in (output.resolve(), *output.resolve().parents)
    if inside or (output.is_dir() and any(output.iterdir()) and not (output / "clara.json").is_file()):
        raise UserError("the folder is not empty", output, "Choose another --output-dir")
    original = AspectSentiment.from_pretrained(model, device="cpu")
    if original.config.lora.rank and original.config.lora.roles == "split":
        raise UserError("an adapter for each role cannot be merged", "lora.roles", "Use the run folder as it is")
    questions = [(example.text, example.aspects) for example in generate(8, seed=11)]
    expected = original.predict_batch(questions)
    config = original.config
    if config.lora.rank:
        backbone: Any = original.model.backbone
        original.model.backbone = backbone.merge_and_unload()
        config = replace(config, lora=replace(config.lora, rank=0))
    merged = AspectSentiment(original.model, original.tokenizer, config, original.encoder_tokenizer)
    merged.save_pretrained(output)
    found = AspectSentiment.from_pretrained(output, device="cpu").predict_batch(questions)
    off = max(_difference(a, b) for x, y in zip(expected, found, strict=True) for a, b in zip(x, y, strict=True))
    if not off <= _TOLERANCE:  # NaN, too
        raise RunFailed(f"the exported model differs by {off:.2g}", output)
    written = sorted(path for path in output.rglob("*") if path.is_file())
    return [{"file": str(path), "bytes": path.stat().st_size, "difference": off} for path in written]


def _difference(a: AspectSentimentResult, b: AspectSentimentResult) -> float:
    return max(abs(a.probabilities[name] - b.probabilities[name]) for name in a.probabilities)
