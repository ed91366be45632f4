"""What an evaluation of answers counts."""

import pytest
import torch
from refrag_models import make_model, make_tokenizer

from refrag.eval.answers import evaluate_answers, score, ways
from refrag.inference.citations import Citation
from refrag.inference.generator import Answer, RefragGenerator
from refrag.sample.facts import generate

EXAMPLES = generate(4, 3)


def answered(text, *cited):
    return Answer(text, tuple(Citation(name, 0, 0, 1) for name in cited), (), 10, 20, 0, 5)


def other(example):
    return next(doc.id for doc in example.docs if doc.id != example.gold)


def test_right_answers_have_all_points():
    found = score(EXAMPLES, [answered(e.answer, e.gold) for e in EXAMPLES])
    assert found == {
        "exact": 1.0,
        "f1": 1.0,
        "value": 1.0,
        "cited_right": 1.0,
        "gold_cited": 1.0,
        "invalid": 0,
        "supported": 1.0,
        "positions": 10,
    }


def test_each_fault_costs_its_own_points():
    a, b, c, d = EXAMPLES
    wrong = d.answer.replace(d.value, "11")
    found = score(
        EXAMPLES,
        [
            answered(a.answer, other(a)),  # cites another document
            answered(f"It is {b.value} [{b.gold}].", b.gold),  # in other words
            answered(""),
            answered(wrong.replace(f"[{d.gold}]", "[zz]"), d.gold),  # an id that nobody gave
        ],
    )
    assert found["exact"] == 1 / 4 and found["value"] == 2 / 4
    assert found["cited_right"] == 2 / 3 and found["gold_cited"] == 2 / 4 and found["invalid"] == 1
    assert found["supported"] == 0.0  # the right words, cited from elsewhere; words that stand nowhere
    assert 0.3 < found["f1"] < 0.8


def test_ways_cover_every_selection_at_every_share():
    names = [way.name for way in ways([0.1, 0.5], ["gate", "random"])]
    fixed = ["no documents", "all tokens", "vectors only"]
    assert (
        names[:3] == fixed and names[3:6] == ["gate 0.1", "random 0.1", "gate 0.1, decoder cites"] and len(names) == 9
    )


def test_rows_are_those_of_single_questions():
    """Nats, positions and answers are what the generator gives for each question alone."""
    generator = RefragGenerator(make_model(), make_tokenizer(compression=8))
    rows = {row["name"]: row for row in evaluate_answers(generator, EXAMPLES[:3], ways([0.3]), max_new_tokens=3)}
    assert len(rows) == 10
    full, none = rows["all tokens"], rows["no documents"]
    assert full["gap_closed"] == 1.0 and none["gap_closed"] == 0.0
    windows = [generator.window(e.question, e.docs, budget=None) for e in EXAMPLES[:3]]
    assert rows["vectors only"]["positions"] == pytest.approx(sum(len(w.embeddings) for w in windows) / 3)
    assert none["positions"] < rows["vectors only"]["positions"] < rows["gate 0.3"]["positions"] < full["positions"]
    target = torch.tensor([*generator.tokenizer.decoder_ids(f" {EXAMPLES[0].answer}")])
    one = evaluate_answers(generator, EXAMPLES[:1], ways([], []), max_new_tokens=3)[2]
    slots = windows[0].embeddings
    end = generator.tokenizer.decoder_tokenizer.eos_token_id
    target = torch.cat([target, torch.tensor([end])]) if end is not None else target
    with torch.no_grad():
        inputs = torch.cat([slots, generator.model.embed(target[:-1].tolist())])
        logits = generator.model.decoder(inputs_embeds=inputs[None]).logits[0, len(slots) - 1 :]
    assert one["nats"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, target)), abs=1e-4)
