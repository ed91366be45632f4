"""The object a user holds: answers by every road are the same, and survive being saved."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clara_helpers import EXAMPLES, TOKENIZER, tiny

from clara_absa.configs import POLARITIES, Aspect, ClaraConfig, LoraSettings, LossConfig, MemoryConfig
from clara_absa.inference import AspectSentiment, Memory
from clara_absa.inference.ask import ask
from clara_absa.inference.export import export_model
from latentlab_shared.errors import RunFailed, UserError


def answerer_of(memory=None, lora=None, seed=0) -> AspectSentiment:
    memory = memory or MemoryConfig(tokens=4)
    lora = lora or LoraSettings(rank=0)
    model, _ = tiny(memory, lora, seed=seed)
    return AspectSentiment(model, TOKENIZER, ClaraConfig(backbone="tiny", memory=memory, lora=lora))


ANSWERER = answerer_of()
TEXT = EXAMPLES[0].text
TERMS = [aspect.term for aspect in EXAMPLES[0].aspects]
LONG = "soup " * 599 + "food."


def values(results) -> list[float]:
    return [p for r in results for p in r.probabilities.values()]


def test_a_batch_says_what_one_text_at_a_time_says():
    questions = [(example.text, example.aspects) for example in EXAMPLES]
    together = ANSWERER.predict_batch(questions)
    for (text, aspects), found in zip(questions, together, strict=True):
        assert values(found) == pytest.approx(values(ANSWERER.predict(text, aspects)), abs=1e-5)
        one_each = [ANSWERER.predict(text, [aspect])[0] for aspect in aspects]
        assert values(found) == pytest.approx(values(one_each), abs=1e-5)
    assert all(sum(r.probabilities.values()) == pytest.approx(1) for each in together for r in each)


def test_a_kept_memory_answers_as_its_text(tmp_path):
    memory = ANSWERER.compress(TEXT)
    assert memory.vectors.shape == (4, 16) and memory.ratio == memory.tokens / 4
    memory.save(tmp_path / "m.safetensors")
    kept = Memory.load(tmp_path / "m.safetensors")
    assert torch.equal(kept.vectors, memory.vectors) and kept.text == TEXT
    found = ANSWERER.predict(aspects=TERMS, memory=kept)
    assert values(found) == pytest.approx(values(ANSWERER.predict(TEXT, TERMS)), abs=1e-5)
    assert [r.aspect for r in found] == [r.aspect for r in ANSWERER.predict(TEXT, TERMS)]
    with pytest.raises(UserError, match="another model"):
        answerer_of(seed=1).predict(aspects=TERMS, memory=kept)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name, said in (("bad", "no memory"), ("absent", "no such file")):
        with pytest.raises(UserError, match=said):
            Memory.load(tmp_path / f"{name}.safetensors")


def test_the_shared_cache_gives_the_same_memories(tmp_path):
    texts = [example.text for example in EXAMPLES[:4]]
    fresh = ANSWERER.compress_batch(texts)
    first = ANSWERER.compress_batch(texts[:2], tmp_path)
    again = ANSWERER.compress_batch(texts, tmp_path)
    for a, b in zip(fresh, again, strict=True):
        assert torch.allclose(a.vectors, b.vectors, atol=1e-6)
    assert torch.equal(first[0].vectors, again[0].vectors)


def test_terms_spans_and_aspects_are_one_question():
    start = TEXT.index(TERMS[0])
    ways = [TERMS[0], (start, start + len(TERMS[0])), Aspect(TERMS[0], None, start, start + len(TERMS[0]))]
    found = ANSWERER.predict(TEXT, ways)
    assert len({r.aspect for r in found}) == 1
    assert values(found[:1]) == pytest.approx(values(found[1:2]), abs=1e-6)


def test_below_the_threshold_there_is_no_answer():
    found = ANSWERER.predict(TEXT, TERMS)
    limit = sorted(r.confidence for r in found)[0] + 1e-6
    cut = ANSWERER.predict(TEXT, TERMS, abstain=limit)
    assert [r.polarity is None for r in cut] == [r.confidence < limit for r in found]
    assert any(r.polarity is None for r in cut)


def test_size_shows_only_the_first_vectors():
    memory = ANSWERER.compress(TEXT)
    short = Memory(memory.vectors[:2], TEXT, memory.tokens, memory.model)
    a, b = ANSWERER.predict(TEXT, TERMS, size=2), ANSWERER.predict(aspects=TERMS, memory=short)
    assert values(a) == pytest.approx(values(b), abs=1e-6)
    assert values(a) != pytest.approx(values(ANSWERER.predict(TEXT, TERMS)), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ANSWERER.predict(TEXT, []), "list of aspects"),
        (lambda: ANSWERER.predict(TEXT, "food"), "list of aspects"),
        (lambda: ANSWERER.predict(TEXT, [" "]), "empty"),
        (lambda: ANSWERER.predict(TEXT, [(3, 10_000)]), "no span"),
        (lambda: ANSWERER.predict(TEXT, ["x" * 201]), "200 characters"),
        (lambda: ANSWERER.predict(TEXT, ["\ud800"]), "half a character"),
        (lambda: ANSWERER.predict("soup \udcff", ["soup"]), "half a character"),
        (lambda: ANSWERER.compress_batch(["soup", "\ud800"]), "text 1: half a character"),
        (lambda: ANSWERER.predict(LONG, [(2990, 2994)]), "behind the first"),
        (lambda: ANSWERER.predict(" ", TERMS), "the text is empty"),
        (lambda: ANSWERER.predict(TEXT, [None]), "neither a term nor"),
        (lambda: ANSWERER.predict(TEXT, [(1, 2, 3)]), "neither a term nor"),
        (lambda: ANSWERER.predict(TEXT, [("a", "b")]), "neither a term nor"),
        (lambda: ANSWERER.predict(TEXT, [(False, True)]), "neither a term nor"),
        (lambda: ANSWERER.predict(TEXT, [Aspect("food", None, -4, -1)]), "no span"),
        (lambda: ANSWERER.predict(TEXT, [Aspect("")]), "an aspect is empty"),
        (lambda: ANSWERER.predict(TEXT, np.zeros((0, 2), int)), "list of aspects"),
        (lambda: ANSWERER.predict(5, TERMS), "a text is needed, not int"),
        (lambda: ANSWERER.predict(b"soup", TERMS), "a text is needed, not bytes"),
        (lambda: ANSWERER.compress(None), "a text is needed"),
        (lambda: ANSWERER.compress_batch("soup"), "not a list of texts"),
        (lambda: ANSWERER.predict_batch([TEXT]), "pairs of a text"),
        (lambda: ANSWERER.predict_batch(TEXT), "pairs of a text"),
        (lambda: ANSWERER.predict(TEXT, TERMS, size=1.5), "1 to 4"),
        (lambda: ANSWERER.predict(TEXT, TERMS, abstain=None), "probability"),
        (lambda: ANSWERER.predict("soup", ["soup"], memory=ANSWERER.compress(TEXT)), "of another text"),
        (lambda: ANSWERER.predict(TEXT, TERMS, size=5), "1 to 4"),
        (lambda: ANSWERER.predict(TEXT, TERMS, abstain=2.0), "probability"),
        (lambda: ANSWERER.predict(TEXT, TERMS, mode="guess"), "not a mode"),
        (lambda: ANSWERER.predict(aspects=TERMS), "text or a memory"),
        (lambda: AspectSentiment.from_pretrained("/no/such/folder"), "no model here"),
        (lambda: ask(ANSWERER, {"1": "[B-ASP]a[E-ASP] b", "2": "c"}, []), "some texts have marked"),
    ],
)
def test_wrong_questions_are_refused_in_one_line(call, said):
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_numpys_numbers_are_spans_and_become_plain():
    spans = np.array([[0, 3], [4, 8]])
    found = ANSWERER.predict(TEXT, spans)
    assert values(found) == pytest.approx(values(ANSWERER.predict(TEXT, [(0, 3), (4, 8)])))
    assert json.loads(json.dumps(found[1].to_dict()))["end"] == 8


def test_answers_that_are_no_numbers_are_a_failure():
    broken = copy.deepcopy(ANSWERER)
    with torch.no_grad():
        next(broken.model.backbone.parameters()).fill_(math.nan)
    with pytest.raises(RunFailed, match="are no numbers"):
        broken.predict(TEXT, TERMS)


def test_written_answers_are_those_of_the_librarys_own_generation_one_by_one():
    memories = ANSWERER.compress_batch([example.text for example in EXAMPLES[:3]])
    prompts = ["Restore text:", "Sentiment of food?", "List all aspects:"]
    vectors = [memory.vectors for memory in memories]
    together = ANSWERER.generate(vectors, prompts, 8)
    assert together == [ANSWERER.generate([v], [p], 8)[0] for v, p in zip(vectors, prompts, strict=True)]
    causal = ANSWERER.model._causal
    table = causal.get_input_embeddings()
    for vector, prompt, written in zip(vectors, prompts, together, strict=True):
        ids = TOKENIZER(prompt, add_special_tokens=False)["input_ids"]
        said = []
        with torch.no_grad():
            for _ in range(8):
                inputs = torch.cat([vector, table(torch.tensor([*ids, *said]))])[None]
                said.append(int(causal(inputs_embeds=inputs).logits[0, -1].argmax()))
                if said[-1] == TOKENIZER.eos_token_id:
                    break
        assert written == TOKENIZER.decode(said, skip_special_tokens=True).strip()


def test_extraction_finds_places_and_polarities(monkeypatch):
    # What an untrained model writes is no list; the rest of the way is what is tested here.
    monkeypatch.setattr(AspectSentiment, "generate", lambda *_: ["Food: positive, gin: neutral, Food: negative, bad"])
    [food, gin] = ANSWERER.extract("The food is here")
    assert (food.aspect, gin.aspect) == (Aspect("food", None, 4, 8), Aspect("gin"))
    assert values([food]) == pytest.approx(values(ANSWERER.predict("The food is here", [(4, 8)])), abs=1e-6)


@pytest.mark.parametrize(
    "lora",
    [
        LoraSettings(rank=0),
        pytest.param(LoraSettings(rank=2), marks=pytest.mark.slow),  # peft alone takes long to import
        pytest.param(LoraSettings(rank=2, roles="split"), marks=pytest.mark.slow),
    ],
    ids=["whole", "shared", "split"],
)
def test_a_saved_model_answers_the_same_in_a_fresh_process(lora, tmp_path):
    if lora.rank:
        pytest.importorskip("peft")
    answerer = answerer_of(lora=lora)
    answerer.save_pretrained(tmp_path / "m")
    assert not [p for p in (tmp_path / "m").rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    code = (
        "import sys, json; from clara_absa import AspectSentiment\n"
        "m = AspectSentiment.from_pretrained(sys.argv[1])\n"
        "found = m.predict(sys.argv[2], json.loads(sys.argv[3]))\n"
        "print(json.dumps([m.identity, [p for r in found for p in r.probabilities.values()]]))"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "m"), TEXT, json.dumps(TERMS)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    identity, found = json.loads(done.stdout)
    assert identity == answerer.identity
    assert found == pytest.approx(values(answerer.predict(TEXT, TERMS)), abs=1e-6)


@pytest.mark.slow
def test_an_exported_model_has_its_adapter_merged(tmp_path):
    pytest.importorskip("peft")
    answerer = answerer_of(lora=LoraSettings(rank=2))
    answerer.save_pretrained(tmp_path / "m")
    written = export_model(tmp_path / "m", tmp_path / "out")
    assert {Path(row["file"]).name for row in written} >= {"clara.json", "memory.safetensors", "model.safetensors"}
    assert not (tmp_path / "out" / "adapter").exists()
    merged = AspectSentiment.from_pretrained(tmp_path / "out")
    assert values(merged.predict(TEXT, TERMS)) == pytest.approx(values(answerer.predict(TEXT, TERMS)), abs=1e-4)


def test_an_export_replaces_nothing_but_an_export(tmp_path):
    ANSWERER.save_pretrained(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("model", "model/backbone", "other"):
        with pytest.raises(UserError, match="not empty"):
            export_model(tmp_path / "model", tmp_path / folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    export_model(tmp_path / "model", tmp_path / "out")
    assert export_model(tmp_path / "model", tmp_path / "out")


def test_a_model_without_memory_reads_the_text():
    reader = answerer_of(MemoryConfig(reader="none"))
    together = reader.predict_batch([(example.text, example.aspects) for example in EXAMPLES[:3]])
    for example, found in zip(EXAMPLES, together, strict=False):
        assert values(found) == pytest.approx(values(reader.predict(example.text, example.aspects)), abs=1e-5)
    with pytest.raises(UserError, match="no memory"):
        reader.compress(TEXT)


@pytest.mark.parametrize("reader", ["decoder", "none"])
def test_a_text_is_read_up_to_the_cut_and_the_answer_says_so(reader):
    answerer = answerer_of(MemoryConfig(tokens=4, reader=reader, max_text_tokens=20))
    kept = answerer.batcher.kept(LONG)
    assert 0 < kept < len(LONG) and len(TOKENIZER(LONG[:kept], add_special_tokens=False)["input_ids"]) == 20
    found = answerer.predict_batch([(LONG, ["soup", "food", (0, 4)]), ("The soup", ["soup"])])
    assert [[r.cut for r in each] for each in found] == [[True] * 3, [False]]
    assert found[0][0].to_dict()["cut"] is True
    assert values(found[0]) == pytest.approx(values(answerer.predict(LONG[:kept], ["soup", "food", (0, 4)])), abs=1e-6)
    with pytest.raises(UserError, match=f"behind the first {kept} characters"):
        answerer.predict(LONG, [(kept - 1, kept + 1)])
    exact = LONG[:kept]
    assert answerer.batcher.kept(exact) == kept and not answerer.is_cut(exact)


def test_a_memory_knows_that_its_text_was_cut(tmp_path):
    memory = ANSWERER.compress(LONG)
    memory.save(tmp_path / "m.safetensors")
    kept = Memory.load(tmp_path / "m.safetensors")
    assert kept.cut and ANSWERER.predict(aspects=["soup"], memory=kept)[0].cut
    assert not ANSWERER.compress(TEXT).cut


@pytest.mark.parametrize("reader", ["decoder", "none"])
def test_many_questions_are_asked_in_several_rows(reader, monkeypatch):
    answerer = answerer_of(MemoryConfig(tokens=4, reader=reader))
    asked = [*TERMS, *(f"aspect {number}" for number in range(30))]
    questions = [(TEXT, asked), ("The soup", ["soup"])]
    whole = answerer.predict_batch(questions)
    monkeypatch.setattr("clara_absa.inference.sentiment._QUESTION_TOKENS", 40)
    assert len(answerer._pieces([answerer._aspects(TEXT, asked)])) > 3
    apart = answerer.predict_batch(questions)
    assert [[r.aspect for r in each] for each in apart] == [[r.aspect for r in each] for each in whole]
    for a, b in zip(apart, whole, strict=True):
        assert values(a) == pytest.approx(values(b), abs=1e-5)


def test_a_ratio_gives_each_text_its_share():
    answerer = answerer_of(MemoryConfig(tokens=16, ratio=4.0))
    for memory in answerer.compress_batch(["soup", TEXT]):
        assert len(memory.vectors) == min(16, -(-memory.tokens // 4))
    found = answerer.predict_batch([("soup", ["soup"]), (TEXT, TERMS)])
    assert values(found[1]) == pytest.approx(values(answerer.predict(TEXT, TERMS)), abs=1e-5)


def test_a_model_that_never_listed_aspects_says_so():
    silent = answerer_of()
    silent.config = dataclasses.replace(silent.config, loss=LossConfig(ext_share=0.0))
    with pytest.raises(
        UserError, match=r"not trained to find aspects\. Name them \(--aspect food, or aspects in a request"
    ):
        silent.extract(TEXT)


def test_results_become_plain_values():
    record = ANSWERER.predict(TEXT, TERMS)[0].to_dict()
    assert json.loads(json.dumps(record)) == record
    assert set(record["probabilities"]) == set(POLARITIES) and record["aspect"] == TERMS[0]
