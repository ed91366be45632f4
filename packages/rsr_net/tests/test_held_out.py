"""The evaluation of a trained summarizer, against figures worked out by hand, and what it writes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab_shared.encoders import TinyEncoder
from latentlab_shared.errors import UserError
from latentlab_shared.metrics.summarization import RougeScorer
from rsr_net.config import RsrConfig
from rsr_net.data import embed_examples
from rsr_net.evaluation.held_out import HeldOut, embedding_metrics, evaluate
from rsr_net.evaluation.report import write_report
from rsr_net.inference import Summarizer
from rsr_net.model.refiner import Refiner
from rsr_net.sample import generate


@pytest.fixture(scope="module")
def found() -> tuple[HeldOut, Summarizer]:
    encoder = TinyEncoder()
    config = RsrConfig.default("rsr", encoder.dim)
    refiner = Refiner(config.model)
    refiner.base[: encoder.dim] = torch.eye(encoder.dim)  # the start is the document's embedding
    summarizer = Summarizer(refiner, encoder, "tiny", config)
    examples = generate(24, 5)
    return evaluate(summarizer, examples, list(embed_examples(examples, encoder))), summarizer


def test_embedding_metrics_by_hand() -> None:
    target = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    center = np.zeros(2, np.float32)
    perfect = embedding_metrics(target, target, center)
    assert (perfect["mse"], perfect["r2"], perfect["centred_r_at_1"]) == (0.0, 1.0, 1.0)
    assert perfect["cosine"] == pytest.approx(1.0)
    half = embedding_metrics(target / 2, target, center)
    assert half["r2"] == pytest.approx(0.75) and half["cosine"] == pytest.approx(1.0)
    constant = embedding_metrics(np.zeros_like(target), target, center)
    assert constant["r2"] == 0.0 and constant["centred_r_at_1"] == pytest.approx(1 / 3)


def test_an_untrained_refiner_stays_where_its_start_is(found: tuple[HeldOut, Summarizer]) -> None:
    held, summarizer = found
    depth = summarizer.config.model.steps
    assert held.articles == 24 and len(held.steps) == 3 * depth + 1
    assert {row["r2"] for row in held.steps} == {held.steps[0]["r2"]}
    assert held.stopping["r2_lost"] == pytest.approx(0.0) and held.confidence["auc"] == pytest.approx(0.5)


def test_extraction_rows_are_rouge_of_the_named_sentences(found: tuple[HeldOut, Summarizer]) -> None:
    held, _ = found
    rows = {row["sentences"]: row for row in held.extraction}
    scorer = RougeScorer(("rougeLsum",), split=str.splitlines)
    wanted = np.mean(
        [
            100 * scorer.score("\n".join(e.sentences[:3]), "\n".join(e.highlights))["rougeLsum"].f1
            for e in generate(24, 5)
        ]
    )
    assert rows["LEAD-3"]["rougeLsum"] == pytest.approx(wanted)
    assert rows["greedy oracle"]["rouge1"] == max(row["rouge1"] for row in rows.values())
    assert rows["by the true embedding"]["rougeLsum"] > rows["LEAD-3"]["rougeLsum"]


def test_the_report_stands_alone(found: tuple[HeldOut, Summarizer], tmp_path: Path) -> None:
    shown = [(generate(1, 6)[0], "A storm <closed> the road.")]
    page = write_report(tmp_path, found[0], "A run", "24 made-up articles", shown).read_text()
    assert (tmp_path / "plots" / "convergence.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 2 and "LEAD-3" in page and "<script" not in page
    assert "24 made-up articles" in page and "A storm &lt;closed&gt; the road." in page


def test_articles_without_summaries_are_refused(found: tuple[HeldOut, Summarizer]) -> None:
    examples = generate(1, 5)
    with pytest.raises(UserError, match="at least two articles"):
        evaluate(found[1], examples, list(embed_examples(examples, found[1].encoder)))
