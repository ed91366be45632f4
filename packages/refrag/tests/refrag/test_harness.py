"""The adapter for lm-evaluation-harness; where that is not installed, the line that says so."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from refrag_models import make_model, make_tokenizer

from latentlab_shared.errors import NeedsExtra
from refrag.eval.harness import harness_model, questions_task, run_harness
from refrag.inference.generator import RefragGenerator, greedy
from refrag.model.documents import Doc
from refrag.model.gate import Budget
from refrag.sample.facts import generate

INSTALLED = importlib.util.find_spec("lm_eval") is not None
with_harness = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
EXAMPLES = generate(3, 5)


@pytest.fixture
def generator():
    return RefragGenerator(make_model(), make_tokenizer(compression=8))


def asked(*args):
    return SimpleNamespace(args=args)


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_extra_it_says_what_to_install(generator):
    for use in (lambda: harness_model(generator), lambda: questions_task(EXAMPLES)):
        with pytest.raises(NeedsExtra, match=r"lm-eval is not installed"):
            use()


@with_harness
def test_likelihoods_are_the_decoders(generator):
    model = harness_model(generator)
    ids = generator.tokenizer.decoder_ids
    context, continuation = "The mill of Selford", " is old."
    with torch.no_grad():
        logits = generator.model.decoder(input_ids=torch.tensor([ids(context) + ids(continuation)])).logits[0]
    target = ids(continuation)
    found = logits[-len(target) - 1 : -1].log_softmax(-1)
    ((nats, is_greedy),) = model.loglikelihood([asked(context, continuation)])
    assert nats == pytest.approx(float(found[torch.arange(len(target)), target].sum()), abs=1e-3)
    assert is_greedy == bool((found.argmax(-1) == torch.tensor(target)).all())
    whole = model.loglikelihood_rolling([asked(context)])[0]
    first = generator.tokenizer.decoder_tokenizer
    start = first.bos_token_id if first.bos_token_id is not None else first.eos_token_id
    with torch.no_grad():
        logits = generator.model.decoder(input_ids=torch.tensor([[start, *ids(context)]])).logits[0, :-1]
    every = logits.log_softmax(-1)[torch.arange(len(ids(context))), ids(context)]
    assert whole == pytest.approx(float(every.sum()), abs=1e-3)


@with_harness
def test_tagged_documents_are_read_as_documents(generator):
    """The same answer as from documents as objects, with text that looks like a tag."""
    docs = [Doc("a", "The gate </doc> number is 12.", "A & B"), Doc("b", "It is old.")]
    model = harness_model(generator, budget=Budget(fraction=0.5))
    prompt = '<doc id="a" title="A &amp; B">The gate &lt;/doc&gt; number is 12.</doc><doc id="b">It is old.</doc>Who?'
    (text,) = model.generate_until([asked(prompt, {"until": ["\n"], "max_gen_toks": 5})])
    wanted = generator.answer("Who?", docs, budget=Budget(fraction=0.5), generation=greedy(5)).text
    assert text == wanted.split("\n")[0]


@with_harness
def test_questions_are_a_task(generator):
    found = run_harness(generator, [questions_task(EXAMPLES, "facts")], budget=Budget(fraction=0.25), limit=2)["facts"]
    assert {f"{name},none" for name in ("exact", "f1", "gold_cited")} <= found.keys()

    class Knows:
        def answer(self, question, docs, **_):
            example = next(e for e in EXAMPLES if e.question == question)
            assert [doc.text for doc in docs] == [doc.text for doc in example.docs]
            return SimpleNamespace(text=f" {example.answer}\nmore")

    knowing = SimpleNamespace(model=generator.model, tokenizer=generator.tokenizer, answer=Knows().answer)
    found = run_harness(knowing, [questions_task(EXAMPLES, "facts")])["facts"]
    assert found["exact,none"] == found["f1,none"] == found["gold_cited,none"] == 1.0
