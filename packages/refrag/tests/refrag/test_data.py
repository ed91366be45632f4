"""Files of questions, and real data brought into the package's forms."""

import copy
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refrag_models import make_model, make_tokenizer
from test_cli import refrag

from latentlab_shared.errors import UserError
from refrag.data.prepare import prepare_data
from refrag.data.questions import read_questions, write_questions
from refrag.data.written import draw_rows, write_corpus
from refrag.model.documents import Doc
from refrag.sample.facts import generate
from refrag.training.alignments import read_texts


def row_with(**fields):
    """A row of a file of questions, with some fields changed."""
    row = {"question": "?", "docs": [{"id": "1", "text": "x"}], "answer": "x [1]", "value": "x", "gold": "1"}
    return json.dumps({**row, "start": 0, "end": 1, **fields})


@pytest.mark.parametrize("name", ["questions.jsonl", "questions.jsonl.gz"])
def test_questions_come_back_as_they_were(tmp_path, name):
    examples = [replace(e, also=("another",)) for e in generate(5, 0)]
    examples.append(replace(examples[0], docs=(Doc(examples[0].gold, examples[0].docs[0].text * 9, "Ünï"),)))
    assert write_questions(tmp_path / name, examples) == 6
    assert list(read_questions(tmp_path / name)) == examples
    assert list(read_questions(tmp_path / name, 2)) == examples[:2]


def test_the_readme_says_what_a_question_is(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^```json\n(\{\"question.*?)^```", readme, re.M | re.S)
    (tmp_path / "q.jsonl").write_text("\ufeff" + row.replace("\n", " ") + "\n", encoding="utf-8")
    (found,) = read_questions(tmp_path / "q.jsonl")
    (gold,) = [doc for doc in found.docs if doc.id == found.gold]
    assert found.value in gold.text[found.start : found.end] and f"[{gold.id}]" in found.answer


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ('{"question": "?", "docs": []}', "'answer', 'value', 'gold', 'start', 'end' are missing"),
        ('{"question": "?", "answer": "", "value": "", "gold": "1", "start": 0, "end": 1}', "'docs' is missing"),
        ("[]", "no JSON object"),
        (row_with(docs=[{"id": "1"}]), "'text' is missing in a document"),
        (row_with(docs=[{"id": "[", "text": "x"}]), "no document id"),
        (row_with(docs=[{"id": "1", "text": "\ud800"}]), "not UTF-8 text"),
        (row_with(docs=[]), "no document has the id '1'"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, line, said):
    write_questions(tmp_path / "q.jsonl", generate(1, 0))
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"q\.jsonl:2") as fault:
        list(read_questions(tmp_path / "q.jsonl"))
    assert said in str(fault.value)


def test_a_span_has_to_be_in_the_right_document(tmp_path):
    example = generate(1, 0)[0]
    for wrong in ({"gold": "no"}, {"end": 10_000}, {"start": example.end}):
        with pytest.raises(ValueError, match="document"):
            replace(example, **wrong)


@pytest.fixture
def source(tmp_path):
    """Data in the forms of its publishers, made up."""
    home = tmp_path / "raw"
    (home / "nq_oracle").mkdir(parents=True)
    (home / "wiki2_corpus").mkdir()
    (home / "wikitext2").mkdir()
    rows = []
    for n in range(60):
        gold = {"title": f"T{n}", "text": f"Some words. The Answer {n}x stands here.", "isgold": True}
        rows.append({"question": f"what is {n}", "answers": ["absent", f"answer {n}x"], "ctxs": [gold]})
    rows.append({"question": "no answer", "answers": ["zzz"], "ctxs": [gold]})
    with gzip.open(home / "nq_oracle" / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    passages = [{"title": f"P{n}", "text": f"Passage {n} of answer {n}x."} for n in range(90)]
    (home / "wiki2_corpus" / "passages.json").write_text(json.dumps(passages))
    text = "".join(f" \n = Article {n} = \n \n Words of {n} . \n = = Part = = \n More . \n" for n in range(20))
    (home / "wikitext2" / "valid.txt").write_text(text)
    return home


def test_what_is_prepared(source, tmp_path):
    counts = prepare_data(source, tmp_path / "out", distractors=3, log=lambda line: None)
    train = list(read_questions(tmp_path / "out" / "questions_train.jsonl.gz"))
    valid = list(read_questions(tmp_path / "out" / "questions_valid.jsonl.gz"))
    assert len(train) == counts["questions_train.jsonl.gz"] and len(train) + len(valid) == 60 and valid
    assert not {e.question for e in train} & {e.question for e in valid}
    for example in [*train, *valid]:
        texts = {doc.id: doc.text for doc in example.docs}
        assert len(texts) == 4 and texts[example.gold][example.start : example.end] == example.value
        assert example.answer == f"{example.value} [{example.gold}]."
        assert [i for i, text in texts.items() if example.value.lower() in text.lower()] == [example.gold]
    assert {e.gold for e in train} == {"1", "2", "3", "4"}  # the right one stands anywhere
    texts = {part: list(read_texts(tmp_path / "out" / f"corpus_{part}.jsonl.gz")) for part in ("train", "valid")}
    assert len(texts["train"]) + len(texts["valid"]) == 90 + 20 + 60
    assert not {e.docs[int(e.gold) - 1].text for e in valid} & set(texts["train"])


def test_prepared_twice_is_prepared_once(source, tmp_path):
    said = []
    counts = prepare_data(source, tmp_path / "out", log=said.append)
    held = (tmp_path / "out" / "questions_train.jsonl.gz").stat().st_mtime_ns
    assert prepare_data(source, tmp_path / "out", log=said.append) == counts and "up to date" in said[-1]
    assert (tmp_path / "out" / "questions_train.jsonl.gz").stat().st_mtime_ns == held
    assert prepare_data(source, tmp_path / "out", distractors=1, log=said.append) == counts
    assert len(next(read_questions(tmp_path / "out" / "questions_train.jsonl.gz")).docs) == 2


def test_a_folder_without_data(tmp_path):
    _, err = refrag("prepare", "--source", tmp_path, "-o", tmp_path / "out", code=2)
    assert "there is no data here" in err and not (tmp_path / "out").exists()


def test_a_decoder_writes_a_corpus(tmp_path):
    """Tokens come from its distribution: with all its mass on one token, nothing else is written."""
    model, words = make_model().decoder, make_tokenizer().decoder_tokenizer
    sure = copy.deepcopy(model)
    letter = words.encode("e", add_special_tokens=False)[-1]
    bias = torch.nn.Linear(sure.lm_head.in_features, sure.lm_head.out_features)
    bias.weight.data.zero_()
    bias.bias.data.zero_()
    bias.bias.data[letter] = 50.0
    home = tmp_path / "decoder"
    model.save_pretrained(home)
    words.save_pretrained(home)
    counts = write_corpus(str(home), tmp_path / "one", 11, 6, seed=1)
    assert counts == {"corpus_valid.jsonl.gz": 2, "corpus_train.jsonl.gz": 9}
    write_corpus(str(home), tmp_path / "two", 11, 6, seed=1)
    texts = [[*read_texts(tmp_path / part / "corpus_train.jsonl.gz")] for part in ("one", "two")]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    sure.lm_head = bias
    rows = draw_rows(sure, 0, None, 2, 4, torch.Generator().manual_seed(0))
    assert rows == [[letter] * 4] * 2
    assert draw_rows(sure, 0, letter, 2, 4, torch.Generator().manual_seed(0)) == [[], []]
