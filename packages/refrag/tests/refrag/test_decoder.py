"""A decoder of one's own, and adapters for one of others."""

import copy
import json

import pytest
import torch
from refrag_models import make_model, make_tokenizer
from refrag_tokenizers import SENTENCES
from test_cli import refrag

from refrag.model.folder import load_decoder
from refrag.model.tokenizer.loading import load_tokenizer
from refrag.training.decoder import DecoderSettings, LanguageBatches, LanguageObjective, make_decoder
from refrag.training.loop import run_steps
from refrag.training.objectives import ContinuationObjective, ReconstructionBatches
from refrag.training.settings import LoopSettings

SMALL = ("vocabulary=300", "width=16", "layers=1", "heads=2", "block=16", "held_out=0.2", "loop.batch_size=4")
SETS = [word for setting in SMALL for word in ("--set", setting)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(SENTENCES * 5), encoding="utf-8")
    return path


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_decoder_learns_and_can_be_loaded(corpus, tmp_path, family):
    sets = (*SETS, "--set", f"family={family}", "--set", "loop.steps=60", "--set", "loop.learning_rate=0.01")
    out, _ = refrag("pretrain-decoder", "--data", corpus, "-o", tmp_path / "run", *sets, "--json")
    results = json.loads(out)
    assert results["nats"] < results["nats_before"] - 0.5 and results["tokens"] > 100
    home = tmp_path / "run" / "decoder"
    decoder, tokenizer = load_decoder(home), load_tokenizer(home)
    assert decoder.config.model_type == family and len(tokenizer) == decoder.config.vocab_size
    assert sum(p.numel() for p in decoder.parameters()) == results["parameters"]


def test_a_start_that_copies(corpus, tmp_path):
    sets = (*SETS, "--set", "copying=true", "--set", "layers=2", "--set", "loop.steps=1", "--set", "width=64")
    refrag("pretrain-decoder", "--data", corpus, "-o", tmp_path / "run", *sets)
    decoder = load_decoder(tmp_path / "run" / "decoder").eval()
    decoder.set_attn_implementation("eager")
    with torch.no_grad():
        looked = decoder(input_ids=torch.randint(5, 250, (2, 12)), output_attentions=True).attentions[0]  # (B, H, T, T)
    assert float(torch.diagonal(looked, -1, -2, -1)[..., 1:].mean()) > 0.7  # at the position before


def test_resumed_is_uninterrupted(corpus, tmp_path):
    sets = (*SETS, "--set", "loop.steps=6", "--set", "loop.checkpoint_every=2")
    refrag("pretrain-decoder", "--data", corpus, "-o", tmp_path / "whole", *sets)
    again, _ = refrag("pretrain-decoder", "--resume", tmp_path / "whole", "--json")
    assert json.loads(again)["nats"] == json.loads((tmp_path / "whole" / "results.json").read_text())["nats"]


def test_a_stopped_run_can_be_finished(corpus, tmp_path):
    run = tmp_path / "run"
    refrag("pretrain-decoder", "--data", corpus, "-o", run, *SETS, "--set", "loop.steps=2")
    before = load_decoder(run / "decoder").state_dict()
    for path in (run / "decoder").glob("*.safetensors"):
        path.unlink()
    make_decoder(DecoderSettings(width=16, layers=1, heads=2), len(before["lm_head.weight"]), 0).save_pretrained(
        run / "decoder"
    )  # as a run that was stopped leaves it: the weights it began with
    out, _ = refrag("pretrain-decoder", "--resume", run, "--finish", "--json")
    assert json.loads(out)["steps"] == 2
    after = load_decoder(run / "decoder").state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    _, err = refrag("pretrain-decoder", "--resume", tmp_path, "--finish", code=2)
    assert "no run to finish" in err


def test_blocks_are_of_the_stream_and_shared_by_processes():
    batches = LanguageBatches(torch.arange(100), 4, 8, 0)
    whole = batches.batch(3, 0, 1)
    assert whole.shape == (4, 9) and bool((whole.diff(dim=1) == 1).all())
    assert torch.equal(torch.cat([batches.batch(3, rank, 2) for rank in (0, 1)]).sort(0)[0], whole.sort(0)[0])


def test_the_loss_is_that_of_the_next_token():
    decoder = make_model().decoder
    ids = torch.randint(5, 50, (2, 7))
    with torch.no_grad():
        found = LanguageObjective(decoder)(ids)["loss"]
        wanted = decoder(input_ids=ids, labels=ids).loss
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no corpus"),
        (["--data", "absent.txt"], "no such file"),
        (["--data", "CORPUS", "--set", "width=15"], "no even multiple"),
        (["--data", "CORPUS", "--set", "block=5000"], "block"),
        (["--data", "CORPUS", "--set", "layers=0"], "layers: must be at least 1"),
        (["--data", "CORPUS", "--set", "heads=0"], "heads"),
        (["--data", "CORPUS", "--set", "vocabulary=100"], "vocabulary"),
        (["--data", "CORPUS", "--set", "copying=true", "--set", "layers=1"], "copying"),
    ],
)
def test_wrong_settings(corpus, tmp_path, given, message):
    words = [corpus if word == "CORPUS" else word for word in given]
    _, err = refrag("pretrain-decoder", *words, "-o", tmp_path / "run", code=2)
    assert message in err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_learn_and_become_part_of_the_decoder(family):
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    from refrag.training.lora import add_lora, merge_lora

    model, tokenizer = copy.deepcopy(make_model("bert", family)), make_tokenizer("bert", family)
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    ids = torch.randint(5, 50, (1, 9))
    with torch.no_grad():
        first = model.decoder(input_ids=ids).logits
    model.set_trained("pd")
    add_lora(model.decoder, 4, 0)
    with torch.no_grad():
        assert torch.allclose(model.decoder(input_ids=ids).logits, first, atol=1e-5)  # they begin as nothing
    batches = ReconstructionBatches([" ".join(SENTENCES)], tokenizer, 2, 3, 2, 0)
    run_steps(ContinuationObjective(model, tokenizer), batches, LoopSettings(steps=3, batch_size=2, learning_rate=1e-2))
    with torch.no_grad():
        trained = model.decoder(input_ids=ids).logits
        merge_lora(model.decoder)
        merged = model.decoder(input_ids=ids).logits
    moved = (trained - first).abs().max()
    assert (merged - trained).abs().max() < 0.01 * moved and moved > 0.01  # large weights magnify rounding
    after = model.decoder.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("embed" in name or "wte" in name or "norm" in name for name in changed)
