"""The embedded default: its sentences need their context, and a new backbone starts where it can learn."""

from collections import Counter

import pytest
import torch

from clara_absa.configs import ClaraConfig
from clara_absa.evaluation.metrics import TermPrior
from clara_absa.sample.backbone import make_backbone, train_tokenizer
from clara_absa.sample.generator import demo, generate, sample_part


def test_sentences_repeat_from_a_seed_and_parts_differ():
    assert generate(20, 3) == generate(20, 3) != generate(20, 4)
    texts = {part: {example.text for example in sample_part(part)} for part in ("train", "val")}
    assert len(texts["train"]) > 1000
    assert demo().text not in texts["train"]


def test_every_sentence_has_aspects_of_different_polarity_at_their_places():
    for example in generate(300):
        assert 2 <= len(example.aspects) <= 3
        assert len({aspect.polarity for aspect in example.aspects}) > 1
        assert [example.text[a.start : a.end] for a in example.aspects] == [a.term for a in example.aspects]


def test_a_look_up_of_the_term_knows_nothing():
    train, held_out = sample_part("train"), generate(500, 99)
    prior = TermPrior(train)
    asked = [aspect for example in held_out for aspect in example.aspects]
    right = sum(prior.predict(aspect.term) == aspect.polarity for aspect in asked) / len(asked)
    assert abs(right - 1 / 3) < 0.06
    counts = Counter(aspect.polarity for aspect in asked)
    assert max(counts.values()) / len(asked) < 0.4


@torch.no_grad()
def test_a_small_backbone_begins_with_attention_that_differs_and_words_that_pass_through():
    tokenizer = train_tokenizer(generate(50), 400)
    backbone = make_backbone(tokenizer, 64, 3, 4)
    ids = torch.tensor([tokenizer(demo().text)["input_ids"]])
    words = backbone.get_input_embeddings()(ids)
    states = backbone.model(ids, output_hidden_states=True).hidden_states[-2]
    assert torch.cosine_similarity(states, words, dim=-1).mean() > 0.3
    backbone.set_attn_implementation("eager")
    seen = backbone.model(ids, output_attentions=True).attentions[0][0, :, -1]  # (heads, T)
    assert float((seen.max(-1).values / seen.mean(-1)).mean()) > 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_default_training_learns_from_its_memory_alone(tmp_path):
    from clara_absa.evaluation.run import evaluate_run
    from clara_absa.pipeline import train_run
    from clara_absa.training.settings import RunSettings

    results = train_run(tmp_path / "run", RunSettings(clara=ClaraConfig.default("sample")), device="cpu")
    assert results["validation"]["accuracy"] > 0.8
    found = evaluate_run(tmp_path / "run", device="cpu")
    accuracy = {row["answers"]: row["accuracy"] for row in found["answers"]}
    for probe in ("another sentence's memory", "zero memory", "aspect prior"):
        assert accuracy[probe] < 0.5, probe
