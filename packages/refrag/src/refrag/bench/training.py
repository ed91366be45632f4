"""What a step of alignment training costs: two decoder forwards for all anchors, beside two for each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentlab_shared.provenance import write_table
from refrag.model.modeling_refrag import RefragModel
from refrag.model.tokenization_refrag import RefragTokenizer
from refrag.sample.facts import generate
from refrag.sample.tiny import make_tiny
from refrag.training.alignment import AlignedExample, AlignmentObjective, collate, make_example
from refrag.training.settings import AlignmentWeights

Log = Callable[[str], None]
_TARGET = 20.0


def losses_per_anchor(
    model: RefragModel, tokenizer: RefragTokenizer, example: AlignedExample, weights: AlignmentWeights
) -> Tensor:
    """The loss of one text as the seed's trainer computes it: for every anchor the decoder reads both sides again."""
    rows, masks = tokenizer.pack([tokenizer.row(example.encoder_ids)])
    states = model.encoder(input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks)).last_hidden_state[0]
    lead = int(tokenizer.encoder_tokenizer.cls_token_id is not None)
    re = model.project(states[lead : lead + len(example.encoder_ids)])
    de = model.embed(example.decoder_ids)
    chunks = list(zip(example.pairs, example.pairs[1:], strict=False))
    total = re.new_zeros(())
    for (i0, j0), (i1, j1) in chunks:
        with torch.no_grad():
            wanted = model.decoder(inputs_embeds=de[None]).logits[0, j1 - 1].log_softmax(-1)
        given = model.decoder(inputs_embeds=re[None]).logits[0, i1 - 1].log_softmax(-1)
        total = total + weights.mse * F.mse_loss(re[i0:i1].mean(0), de[j0:j1].mean(0))
        total = total + weights.kld * F.kl_div(given, wanted, log_target=True, reduction="sum")
        total = total + weights.argmax * F.cross_entropy(given, wanted.argmax())
    return total / len(chunks)


def bench_step(
    *, anchors: int = 30, width: int = 512, layers: int = 8, repeats: int = 5, seed: int = 0, log: Log = lambda _: None
) -> list[dict[str, Any]]:
    """Measure a step, forward and backward, on one text; CPU time of one thread, interleaved, medians.

    Args:
        anchors: of the text.
        width: of the decoder.
        layers: of the decoder.
        repeats: rounds.
        seed: of the weights and the text.
        log: told what is going on.
    """
    text = " ".join(doc.text for example in generate(20, seed) for doc in example.docs)
    model, tokenizer = make_tiny([text], width=width, layers=layers, seed=seed)
    model.set_trained("pe")
    model.eval()
    whole = make_example(text, tokenizer, 200)
    assert whole is not None
    i, j = whole.pairs[anchors]
    example = AlignedExample(whole.encoder_ids[:i], whole.decoder_ids[:j], whole.pairs[: anchors + 1])
    weights = AlignmentWeights()
    objective, batch = AlignmentObjective(model, weights), collate([example], tokenizer)
    ways: dict[str, Callable[[], Tensor]] = {
        "two forwards": lambda: objective(batch)["loss"],
        "two forwards per anchor": lambda: losses_per_anchor(model, tokenizer, example, weights),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for round_ in range(repeats + 1):  # the first warms up
            log(f"round {round_} of {repeats}")
            for name, way in ways.items():
                model.zero_grad()
                began = time.process_time()
                loss = way()
                torch.autograd.backward(loss)
                if round_:
                    times[name].append(time.process_time() - began)
                losses[name] = float(loss.detach())
    finally:
        torch.set_num_threads(threads)
    fast, slow = (statistics.median(times[name]) for name in ways)
    rows: list[dict[str, Any]] = [
        {"name": name, "value": 1e3 * statistics.median(times[name]), "unit": "CPU ms a step", "loss": losses[name]}
        for name in ways
    ]
    ratio = {"name": "ratio", "value": slow / fast, "unit": f"x, at {anchors} anchors", "target": _TARGET}
    return [*rows, {**ratio, "ok": slow / fast >= _TARGET}]


def write_results(folder: Path, rows: Sequence[dict[str, Any]], command: str, seed: int) -> None:
    """Write ``alignment_step.json``, the table of the README."""
    about = "one text; BERT 2 x 256 and Llama 8 x 512, random weights; one thread, CPU time, interleaved, medians"
    shown = [{"name": row["name"], "metrics": {k: v for k, v in row.items() if k != "name"}} for row in rows]
    write_table(folder / "alignment_step.json", shown, command=command, data=about, seeds=[seed])
