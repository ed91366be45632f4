"""References, baselines and shares by hand; no model is needed for them."""

from dataclasses import replace

import pytest

from latentlab_shared.metrics.summarization import RougeScorer
from seq2seq_keras.config import DataConfig
from seq2seq_keras.evaluation import references_of, score_baselines, seed_protocol
from seq2seq_keras.evaluation.baselines import baselines, best_span
from seq2seq_keras.evaluation.scores import behaviour, score, table_row
from seq2seq_keras.sample import generate

EXAMPLES = generate(40, 5)


def test_references_are_cut_only_where_the_label_is_made():
    long = " ".join(f"w{i}" for i in range(30))
    human, made = replace(EXAMPLES[0], summary=long), replace(EXAMPLES[0], summary=long, pseudo=True)
    assert [len(r.split()) for r in references_of([human, made], DataConfig())] == [30, 18]
    texts = [replace(EXAMPLES[0], text="Short one. The second sentence of this text is a longer one.", summary="")]
    assert seed_protocol(texts, texts, DataConfig()) == ["the second sentence of this text is a longer one"]


def test_baselines():
    example = replace(EXAMPLES[0], text="The tax rose. Rain fell in Oslo on the second day. So.")
    found = {name: make(example, ["rain", "oslo"]) for name, make in baselines(DataConfig(max_source=7), (2,)).items()}
    assert found["lead-2"] == ["the", "tax"]
    assert found["copy of the input"] == ["the", "tax", "rose", "rain", "fell", "in"]
    assert found["longest sentence"] == ["rain", "fell", "in", "oslo", "on", "the", "second", "day"]
    whole = {n: make(example, []) for n, make in baselines(DataConfig(max_target=5), (2,), seed_exact=True).items()}
    assert whole["longest sentence"] == ["on", "the", "second", "day"]  # the front is lost, as in the seed's labels
    assert best_span(["a", "b", "c", "b"], ["b", "c"]) == ["b", "c"]
    assert best_span(["a"], ["b", "c"]) == ["a"]


def test_behaviour_by_hand():
    found = behaviour(["tax tax tax", "rain in oslo 7", ""], ["a tax", "rain fell in oslo on 6", "x"])
    assert found["repeated_bigrams"] == pytest.approx(1 / 3) and found["empty"] == pytest.approx(1 / 3)
    assert found["copied_words"] == pytest.approx(6 / 7) and found["numbers_kept"] == 0
    assert found["novel_bigrams"] == pytest.approx(4 / 5) and found["distinct"] == 1
    assert found["length"] == pytest.approx(7 / 3)


def test_scores_are_those_of_each_pair():
    found = score(["tax tax", "rain"], ["tax", "rain"], RougeScorer(("rouge1",)))
    assert found["f1"].tolist() == pytest.approx([2 / 3, 1]) and found["rouge1"].tolist() == pytest.approx([2 / 3, 1])
    row = table_row("x", found, None)
    assert row["metrics"]["f1"] == pytest.approx(5 / 6) and row["interval"]["f1"][0] >= 2 / 3 - 1e-9


def test_rouge_is_rouge_scores():
    rouge_score = pytest.importorskip("rouge_score.rouge_scorer")
    theirs = rouge_score.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    texts, summaries = [e.text for e in EXAMPLES], [e.summary for e in EXAMPLES]
    ours = score(texts, summaries, RougeScorer(("rouge1", "rouge2", "rougeL")))
    for i, (text, summary) in enumerate(zip(texts, summaries, strict=True)):
        for metric, value in theirs.score(summary, text).items():
            assert ours[metric][i] == pytest.approx(value.fmeasure, abs=1e-6)


def test_the_oracle_is_above_every_baseline():
    references = references_of(EXAMPLES, DataConfig())
    rows, signature = score_baselines(EXAMPLES, references, DataConfig())
    f1 = {row["name"]: row["metrics"]["f1"] for row in rows}
    assert f1["best span (oracle)"] == max(f1.values()) and "rouge1" in signature
