"""A worker whose decoder runs in vLLM. The engine itself was not run: its wheels need a GPU. The tests stand in for it.

Prompts are sent as embeddings only: what the decoder reads as tokens is looked up here, too. A prompt that mixes ids
and embeddings is told apart by a mask, which prefix caching may leave out of its keys. ``enable_prompt_embeds`` is for
trusted callers only; here only this module fills it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentlab_shared.errors import NeedsExtra
from refrag.inference.citations import find_citations
from refrag.inference.generator import RefragGenerator
from refrag.model.documents import Doc, Message
from refrag.model.gate import Budget
from refrag.serving.worker import Job, Tell, describe, job_scores, kv_bytes


class VllmWorker:
    """A worker: encoder, gate and window here, the decoder in vLLM, in the same process.

    Citations are those that the decoder writes: vLLM is not told the rule that keeps them to the given ids, so what
    names no given document is left out of them. Text comes in one piece, and an answer that is cancelled is finished
    first.

    Args:
        generator: the model; its decoder is used for its embeddings only.
        decoder: the folder of the decoder, ``decoder/`` of a saved model.

    Raises:
        NeedsExtra: if vLLM is not installed.
    """

    def __init__(self, generator: RefragGenerator, decoder: Path) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError:
            raise NeedsExtra("vllm", "vllm", "latentlab-refrag") from None
        self.generator, self.restarts = generator, 0
        self._engine = LLM(model=str(decoder), enable_prompt_embeds=True, enable_prefix_caching=False)
        self._sampling = SamplingParams

    def about(self) -> dict[str, Any]:
        """The model."""
        return describe(self.generator) | {"backend": "vllm"}

    def run(self, job: Job, tell: Tell, stopped: Callable[[], bool]) -> dict[str, Any]:
        """Answer a job."""
        docs = [Doc(d["id"], d["text"], d["title"]) for d in job["docs"]]
        messages: list[Message] = [*job["history"], {"role": "user", "content": job["question"]}]
        found: dict[str, Any] = {}
        for side in job["sides"]:
            if stopped():
                break
            full = side == "full"
            budget = Budget(fraction=1.0) if full else Budget(**job["budget"])
            scores = None if full else job_scores(self.generator, messages, docs, job)
            began = time.perf_counter()
            window = self.generator.window(messages, docs, budget=budget, scores=scores, compression=job["compression"])
            per, size = kv_bytes(self.generator), len(window.embeddings)
            slots = [asdict(slot) for slot in window.slots]
            plan = {"side": side, "positions": size, "full_positions": window.full_length, "kv_bytes_per_position": per}
            tell("plan", plan | ({} if full else {"slots": slots}))
            wanted = self._sampling(temperature=0.0, max_tokens=job["max_new_tokens"])
            (reply,) = self._engine.generate({"prompt_embeds": window.embeddings}, wanted)
            text = reply.outputs[0].text.lstrip()
            tell("token", {"side": side, "text": text, "n": 1})
            citations = [asdict(citation) for citation in find_citations(text, docs, window.slots)]
            for citation in citations:
                tell("citation", {"side": side, **citation})
            metrics = {
                "ttft_s": None,
                "seconds": time.perf_counter() - began,
                "new_tokens": len(reply.outputs[0].token_ids),
                "positions": size,
                "full_positions": window.full_length,
                "kv_bytes": per * size,
                "full_kv_bytes": per * window.full_length,
                "encoded_rows": len(self.generator.vectors.fresh),
            }
            tell("metrics", {"side": side, **metrics})
            found[side] = {"text": text, "citations": citations, "slots": slots, "metrics": metrics}
        return found

    def ready(self) -> None:
        """The engine runs in this process."""

    def close(self) -> None:
        """The engine ends with the process."""
