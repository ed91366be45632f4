"""Training: the losses against slow ones, steps that a stop does not change, parts that stay as they were."""

import copy
import itertools
import math
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refrag_models import DECODERS, make_model, make_tokenizer, slots_of
from refrag_tokenizers import SENTENCES
from torch.nn import functional as F

from latentlab_shared.errors import RunFailed, UserError
from refrag.pipeline import model_folder
from refrag.training.alignment import (
    AlignmentBatches,
    AlignmentObjective,
    AlignmentWeights,
    collate,
    make_example,
)
from refrag.training.loop import CHECKPOINT, learning_rate_share, run_steps, steps_done
from refrag.training.objectives import (
    ContinuationObjective,
    NextParagraphBatches,
    Passage,
    ReconstructionBatches,
    TurnBatches,
    curriculum,
)
from refrag.training.settings import LoopSettings

LONG = [" ".join(SENTENCES), " ".join(reversed(SENTENCES))]
FAST = LoopSettings(steps=6, batch_size=2, learning_rate=1e-2, checkpoint_every=2)


def fresh(letters="pe", decoder="llama", encoder="bert"):
    model = copy.deepcopy(make_model(encoder, decoder))
    model.set_trained(letters)
    return model


# -- alignment ---------------------------------------------------------------------------------------------------------


def slowly(model, tokenizer, examples, weights):
    """The seed's way: for each anchor, the decoder reads both prefixes anew."""
    totals = {"mse": 0.0, "kld": 0.0, "argmax": 0.0}
    table = model.decoder.get_input_embeddings().weight
    for example in examples:
        rows, masks = tokenizer.pack([tokenizer.row(example.encoder_ids)])
        states = model.encoder(input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks)).last_hidden_state
        re = model.project(states[0, 1 : 1 + len(example.encoder_ids)])
        de = table[list(example.decoder_ids)]
        chunks = list(itertools.pairwise(example.pairs))
        for (i0, j0), (i1, j1) in chunks:
            scale = 1 / len(chunks) / len(examples)
            totals["mse"] += scale * F.mse_loss(re[i0:i1].mean(0), de[j0:j1].mean(0))
            wanted = model.decoder(inputs_embeds=de[None, :j1]).logits[0, -1].log_softmax(-1)
            given = model.decoder(inputs_embeds=re[None, :i1]).logits[0, -1].log_softmax(-1)
            totals["kld"] += scale * F.kl_div(given, wanted, log_target=True, reduction="sum")
            totals["argmax"] += scale * F.cross_entropy(given, wanted.argmax())
    totals["loss"] = sum(getattr(weights, name) * totals[name] for name in ("mse", "kld", "argmax"))
    return totals


@pytest.mark.parametrize(("encoder", "decoder"), [("bert", "llama"), ("roberta", "gpt2"), ("bert", "qwen2")])
def test_alignment_losses_are_those_of_two_forwards_per_anchor(encoder, decoder):
    model, tokenizer = fresh("pe", decoder, encoder).eval(), make_tokenizer(encoder, decoder)
    examples = [make_example(text, tokenizer, 40) for text in SENTENCES[:3]]
    weights, calls = AlignmentWeights(), []
    slow = slowly(model, tokenizer, examples, weights)
    hook = model.decoder.register_forward_hook(lambda module, args, out: calls.append(1))
    fast = AlignmentObjective(model, weights)(collate(examples, tokenizer))
    hook.remove()
    assert len(calls) == 2 and fast["anchors"] == sum(len(e.pairs) - 1 for e in examples) > 10
    for name, value in slow.items():
        assert torch.allclose(fast[name], value, rtol=1e-4, atol=1e-5), name
    ours = torch.autograd.grad(fast["loss"], list(model.projector.parameters()))
    theirs = torch.autograd.grad(slow["loss"], list(model.projector.parameters()))
    assert all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in zip(ours, theirs, strict=True))


def test_a_text_is_cut_at_an_anchor():
    tokenizer = make_tokenizer()
    whole, cut = make_example(LONG[0], tokenizer, 10**6), make_example(LONG[0], tokenizer, 20)
    assert cut.pairs == tuple(p for p in whole.pairs if max(p) <= 20)
    assert (len(cut.encoder_ids), len(cut.decoder_ids)) == cut.pairs[-1]
    assert make_example("", tokenizer, 20) is None
    with pytest.raises(UserError, match="none of 2 texts has an anchor"):
        AlignmentBatches(["", " "], tokenizer, 2, 20, 0)


@pytest.mark.parametrize(
    ("weights", "least"), [(AlignmentWeights(), 0.9), (AlignmentWeights(mse=1.0, kld=0.0, argmax=0.0), 0.5)]
)
def test_alignment_loss_falls(weights, least):
    model, tokenizer, losses = fresh("pe"), make_tokenizer(), []
    batches = AlignmentBatches(SENTENCES, tokenizer, 4, 40, 0)
    # At ten times the rate, rounding alone moves the last losses by a tenth.
    settings = LoopSettings(steps=80, batch_size=4, learning_rate=1e-3)
    run_steps(AlignmentObjective(model, weights), batches, settings, log=lambda step, found: losses.append(found))
    assert all(found["anchors"] > 0 and math.isfinite(found["loss"]) for found in losses)
    assert sum(f["loss"] for f in losses[-5:]) < least * sum(f["loss"] for f in losses[:5])


# -- reconstruction and next paragraph ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_continuation_loss_is_that_of_each_passage_alone(decoder):
    model, tokenizer = fresh("pe", decoder).eval(), make_tokenizer("bert", decoder)
    chunks = tokenizer.chunks(LONG[0])
    passages = [
        Passage((chunks[0], chunks[1].decoder_ids, chunks[2]), chunks[3].decoder_ids),
        Passage((chunks[4],), chunks[5].decoder_ids + chunks[6].decoder_ids),
    ]
    objective = ContinuationObjective(model, tokenizer)
    together = objective.per_passage(passages)
    for found, passage in zip(together, passages, strict=True):
        prompt = slots_of(objective, passage)
        nats = []
        for n, token in enumerate(passage.target):
            slots = torch.cat([prompt, model.embed(passage.target[:n])])
            nats.append(-model.logits([slots])[0].log_softmax(-1)[token])
        assert torch.allclose(found, torch.stack(nats).mean(), atol=1e-4)


def test_everything_expanded_is_plain_language_modelling():
    model, tokenizer = fresh().eval(), make_tokenizer()
    chunks = tokenizer.chunks(LONG[0])[:6]
    passage = Passage(tuple(chunk.decoder_ids for chunk in chunks[:5]), chunks[5].decoder_ids)
    ids = torch.tensor([[t for c in chunks for t in c.decoder_ids]])
    logits = model.decoder(input_ids=ids).logits[0].log_softmax(-1)
    n = len(passage.target)
    plain = -logits[-n - 1 : -1].gather(1, ids[0, -n:, None]).mean()
    assert torch.allclose(ContinuationObjective(model, tokenizer)([passage])["loss"], plain, atol=1e-5)


@given(st.floats(0, 1), st.integers(1, 9))
def test_the_curriculum_moves_from_short_to_long(share, longest):
    weights = curriculum(share, longest)
    assert len(weights) == longest and math.isclose(sum(weights), 1)

    def mean(at):
        return sum(n * w for n, w in enumerate(curriculum(at, longest)))

    assert mean(0) <= mean(share) + 1e-9 and mean(share) <= mean(1) + 1e-9
    assert curriculum(0, longest)[0] == max(curriculum(0, longest))
    assert curriculum(1, longest)[-1] == max(curriculum(1, longest))


def test_stretches_are_of_the_curriculums_lengths():
    tokenizer = make_tokenizer()
    batches = ReconstructionBatches(LONG, tokenizer, 64, 100, 4, 0)
    early, late = ([len(p.pieces) for p in batches.batch(step, 0, 1)] for step in (0, 99))
    assert set(early + late) <= {1, 2, 4, 8} and sum(late) > 1.5 * sum(early)
    for passage in batches.batch(50, 0, 1):
        assert passage.target == tuple(t for c in passage.pieces for t in c.decoder_ids)
    with pytest.raises(UserError, match="no text has 256 chunks"):
        ReconstructionBatches(["short"], tokenizer, 2, 2, 9, 0)


def test_lengths_without_a_curriculum():
    tokenizer = make_tokenizer()
    sizes = {
        kind: [len(p.pieces) for step in (0, 99) for p in ReconstructionBatches(*given, kind).batch(step, 0, 1)]
        for kind, given in (("longest", (LONG, tokenizer, 32, 100, 4, 0)), ("mixed", (LONG, tokenizer, 32, 100, 4, 0)))
    }
    assert set(sizes["longest"]) == {8} and set(sizes["mixed"]) == {1, 2, 4, 8}


def test_rates_take_turns_and_whole_contexts_are_tokens():
    tokenizer = make_tokenizer()
    kinds = [
        NextParagraphBatches(LONG, tokenizer, 4, 24 // k, 8 // k, 0, expanded=0.0, compression=k, whole=whole)
        for k, whole in ((2, 0.0), (4, 1.0))
    ]
    turns = TurnBatches(kinds)
    assert turns.batch(0, 0, 1) == kinds[0].batch(0, 0, 1) and turns.batch(3, 0, 1) == kinds[1].batch(3, 0, 1)
    assert not any(isinstance(piece, tuple) for p in turns.batch(2, 0, 1) for piece in p.pieces)
    assert all(isinstance(piece, tuple) for p in turns.batch(1, 0, 1) for piece in p.pieces)


def test_bfloat16_is_nearly_the_same_and_learns():
    tokenizer = make_tokenizer()
    batches = ReconstructionBatches(LONG, tokenizer, 2, 100, 2, 0)
    firsts = []
    for bf16 in (False, True):
        losses = []
        settings = LoopSettings(steps=20, batch_size=2, learning_rate=1e-2, bf16=bf16)
        objective = ContinuationObjective(fresh("ped"), tokenizer)
        run_steps(objective, batches, settings, log=lambda step, found, kept=losses: kept.append(found["loss"]))
        assert all(parameter.dtype == torch.float32 for parameter in objective.parameters())
        assert sum(losses[-5:]) < sum(losses[:5])
        firsts.append(losses[0])
    assert firsts[0] != firsts[1] == pytest.approx(firsts[0], rel=0.05)


def test_the_next_paragraph_follows_its_context():
    tokenizer = make_tokenizer()
    ids = [t for c in tokenizer.chunks(LONG[0]) for t in c.decoder_ids]
    batches = NextParagraphBatches(LONG[:1], tokenizer, 32, 6, 2, 0, expanded=0.5)
    shown = []
    for passage in batches.batch(0, 0, 1):
        before = [t for c in passage.pieces for t in (c if isinstance(c, tuple) else c.decoder_ids)]
        both = before + list(passage.target)
        assert any(ids[n : n + len(both)] == both for n in range(len(ids)))
        shown += [isinstance(piece, tuple) for piece in passage.pieces]
    assert 0.3 < sum(shown) / len(shown) < 0.7
    with pytest.raises(UserError, match="no text has 300 chunks"):
        NextParagraphBatches(LONG, tokenizer, 2, 200, 100, 0)


def test_one_batch_can_be_learned_by_heart():
    model, tokenizer = fresh("ped"), make_tokenizer()
    one = ReconstructionBatches(LONG, tokenizer, 2, 100, 2, 0).batch(0, 0, 1)

    class Same:
        def batch(self, step, rank, world):
            return one

    losses = []
    settings = LoopSettings(steps=120, batch_size=2, learning_rate=2e-2)
    run_steps(ContinuationObjective(model, tokenizer), Same(), settings, log=lambda s, f: losses.append(f["loss"]))
    assert losses[-1] < 0.2 * losses[0]


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letters", ["p", "e", "pe", "d"])
def test_parts_that_do_not_learn_stay_as_they_were(letters):
    model, tokenizer = fresh(letters), make_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_steps(AlignmentObjective(model), AlignmentBatches(SENTENCES, tokenizer, 2, 30, 0), FAST)
    for name, value in model.state_dict().items():
        part = {"projector": "p", "encoder": "e", "decoder": "d"}.get(name.split(".")[0], "")
        changed = not torch.equal(value, before[name])
        assert not changed or part in letters, name
    moved = {n.split(".")[0][0] for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == set(letters)


def test_parts_that_do_not_learn_have_no_dropout():
    model = fresh("p")
    model.train()
    assert model.projector.training and not model.encoder.training and not model.decoder.training


@pytest.mark.parametrize("stage", ["alignment", "reconstruction"])
def test_resumed_is_uninterrupted(tmp_path, stage):
    tokenizer = make_tokenizer()

    def make():
        model = fresh("ped")
        if stage == "alignment":
            return AlignmentObjective(model), AlignmentBatches(SENTENCES, tokenizer, 2, 30, 0)
        return ContinuationObjective(model, tokenizer), ReconstructionBatches(LONG, tokenizer, 2, 6, 3, 0)

    whole, parts = [], []
    straight = run_steps(*make(), FAST, log=lambda s, f: whole.append((s, f["loss"])))
    run_steps(*make(), FAST, folder=tmp_path, stop_after=3, log=lambda s, f: parts.append((s, f["loss"])))
    again = run_steps(*make(), FAST, folder=tmp_path, resume=True, log=lambda s, f: parts.append((s, f["loss"])))
    assert whole == parts
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))


def test_ctrl_c_ends_the_step_and_keeps_it(tmp_path):
    tokenizer = make_tokenizer()

    def make():
        return AlignmentObjective(fresh("ped")), AlignmentBatches(SENTENCES, tokenizer, 2, 30, 0)

    def interrupt(step, found):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    straight = run_steps(*make(), FAST)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_steps(*make(), FAST, folder=tmp_path, log=interrupt)
    assert signal.getsignal(signal.SIGINT) is before and steps_done(tmp_path) in (3, 4)
    again = run_steps(*make(), FAST, folder=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))


def test_a_run_that_is_not_finished_has_no_model_yet(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model/refrag.json"):
        (tmp_path / name).write_text("{}")
    for asked in (tmp_path, tmp_path / "model"):
        with pytest.raises(UserError, match=f"not finished. Go on: refrag train --resume {tmp_path}"):
            model_folder(asked)
    (tmp_path / "results.json").write_text("{}")
    assert model_folder(tmp_path) == model_folder(tmp_path / "model") == tmp_path / "model"


def test_checkpoints_that_do_not_fit(tmp_path):
    tokenizer = make_tokenizer()
    batches = AlignmentBatches(SENTENCES, tokenizer, 2, 30, 0)
    run_steps(AlignmentObjective(fresh("p")), batches, FAST, folder=tmp_path)
    other = LoopSettings(steps=6, batch_size=2, learning_rate=2e-2, checkpoint_every=2)
    with pytest.raises(UserError, match="another learning_rate"):
        run_steps(AlignmentObjective(fresh("p")), batches, other, folder=tmp_path, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        run_steps(AlignmentObjective(fresh("p")), batches, FAST, folder=tmp_path, resume=True)


def test_faults_of_a_run():
    tokenizer = make_tokenizer()
    batches = AlignmentBatches(SENTENCES, tokenizer, 2, 30, 0)
    with pytest.raises(UserError, match="nothing is trainable"):
        run_steps(AlignmentObjective(fresh("")), batches, FAST)
    model = fresh("p")
    torch.nn.init.constant_(model.projector.weight, float("nan"))
    with pytest.raises(RunFailed, match="not finite at step 1"):
        run_steps(AlignmentObjective(model), batches, FAST)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup": 2}, "warmup"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings(wrong, name):
    with pytest.raises(UserError, match=name):
        LoopSettings(**wrong)


def test_the_rate_rises_then_falls():
    rates = [learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.01
