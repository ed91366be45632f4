"""The one object a user holds: articles in, summaries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from latentlab_shared.devices import choose_device
from latentlab_shared.errors import RunFailed, UserError, shell_word
from latentlab_shared.files import atomic_path, read_json, write_json
from rsr_net.config import RsrConfig
from rsr_net.data.embed import embed_examples, encode
from rsr_net.data.stories import make_example
from rsr_net.data.types import ArticleVectors, Batch, Example, Floats
from rsr_net.inference.decoder import TextDecoder, load_decoder
from rsr_net.inference.summary import MODES, Mode, Neighbour, Read, Step, Summary
from rsr_net.model.refiner import Refinement, Refiner
from rsr_net.model.selection import CANDIDATES
from rsr_net.tensor_files import write_tensors

if TYPE_CHECKING:
    from latentlab_shared.embeddings import EmbeddingCache
    from latentlab_shared.encoders import TextEncoder

FORMAT = 1
MAX_SENTENCES = 4000  # of one article: the choice compares each with each
_GROUP = 32  # articles refined together
_READS = 3  # sentences named per step
_NEIGHBOURS = 3
_HALT = 2e-2  # an article halts when a step moves its state by less than this share


@dataclass(frozen=True)
class SummaryIndex:
    """Known summaries and their embeddings, searched exactly.

    Attributes:
        ids: of their articles, N.
        texts: the summaries, N.
        vectors: their embeddings, (N, D).
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: Floats

    def nearest(self, y: Floats, count: int = _NEIGHBOURS) -> tuple[Neighbour, ...]:
        """The ``count`` summaries whose cosine with ``y`` (D,) is highest."""
        lengths = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(y)
        cosines = self.vectors @ y / np.maximum(lengths, 1e-12)  # (N,)
        best = np.argsort(-cosines, kind="stable")[:count]
        return tuple(Neighbour(self.ids[i], self.texts[i], float(cosines[i])) for i in best)


class Summarizer:
    """A refiner with the encoder it was trained on, and what turns its vectors into words.

    Args:
        refiner: the trained network.
        encoder: the encoder of its training vectors.
        encoder_name: what ``load_encoder`` calls it.
        config: the run's configuration.
        index: known summaries, for ``mode="retrieve"``.
        decoder: for ``mode="generate"``.
        faithful: faithfulness below which a generated text gets a warning.
        cache: of embeddings, for large inputs.
        device: of the refiner.
        trained_on: the source of its articles, such as "sample"; "" where nobody said.
    """

    def __init__(
        self,
        refiner: Refiner,
        encoder: TextEncoder,
        encoder_name: str,
        config: RsrConfig,
        *,
        index: SummaryIndex | None = None,
        decoder: TextDecoder | None = None,
        faithful: float = 0.5,
        cache: EmbeddingCache | None = None,
        device: str = "cpu",
        trained_on: str = "",
    ) -> None:
        if encoder.dim != config.model.input_dim:
            raise UserError(
                f"the encoder gives {encoder.dim} numbers, the refiner takes {config.model.input_dim}",
                encoder_name,
                "Use the encoder the model was trained with",
            )
        self.refiner = refiner.to(device).eval()
        self.encoder, self.encoder_name, self.config = encoder, encoder_name, config
        self.index, self.faithful, self.cache, self.device = index, faithful, cache, device
        self.trained_on = trained_on
        self._decoder = decoder
        self._decoder_folder: Path | None = None

    @property
    def decoder(self) -> TextDecoder | None:
        """What writes in the mode "generate"; a saved one is read when it is first asked for."""
        if self._decoder is None and self._decoder_folder is not None:
            self._decoder = load_decoder(self._decoder_folder)
        return self._decoder

    @decoder.setter
    def decoder(self, decoder: TextDecoder | None) -> None:
        self._decoder, self._decoder_folder = decoder, None

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes this model was trained for."""
        writes = self._decoder is not None or self._decoder_folder is not None
        return ("extract", *(("retrieve",) if self.index is not None else ()), *(("generate",) if writes else ()))

    # -- summaries -----------------------------------------------------------------------------------------------

    @overload
    def summarize(self, text: str, *, mode: Mode = ..., max_sentences: int = ...) -> Summary: ...

    @overload
    def summarize(self, text: list[str], *, mode: Mode = ..., max_sentences: int = ...) -> list[Summary]: ...

    def summarize(
        self, text: str | list[str], *, mode: Mode = "extract", max_sentences: int = 3
    ) -> Summary | list[Summary]:
        """Summarize one article, or several.

        Args:
            text: an article, or a list of them. Line breaks end sentences.
            mode: "extract" picks sentences of the article, "retrieve" finds the nearest known summaries, "generate"
                writes new words.
            max_sentences: at most so many sentences are picked, from 1 to 8.

        Returns:
            One ``Summary``, or a list in the order of the articles.

        Raises:
            UserError: for an empty article, an unknown mode, and a mode the model was not trained for.
        """
        if isinstance(text, str):
            return self.summarize_examples([make_example("text", text, [], "text")], mode, max_sentences)[0]
        examples = [make_example(str(n), article, [], f"text {n}") for n, article in enumerate(text)]
        return self.summarize_examples(examples, mode, max_sentences)

    def summarize_examples(
        self, examples: Sequence[Example], mode: Mode = "extract", max_sentences: int = 3
    ) -> list[Summary]:
        """Summarize articles that are split into sentences already; see ``summarize``."""
        if mode not in MODES:
            raise UserError(f"{mode!r} is not a mode", "mode", f"Use one of: {', '.join(MODES)}")
        if not 1 <= max_sentences <= CANDIDATES:
            raise UserError(f"{max_sentences} is out of range", "max_sentences", f"Ask for 1 to {CANDIDATES}")
        for example in examples:
            if len(example.sentences) > MAX_SENTENCES:
                what = f"has {len(example.sentences)} sentences, more than {MAX_SENTENCES}"
                raise UserError(what, example.id, "Summarize it in parts")
        if mode == "retrieve" and self.index is None:
            raise UserError("the model has no index of summaries", "mode retrieve", "Train it again with rsr-net train")
        if mode not in self.modes:
            raise UserError(
                "the model has no decoder", "mode generate", "Add one: rsr-net train --resume RUN --decoder"
            )
        found: list[Summary] = []
        for at in range(0, len(examples), _GROUP):
            group = examples[at : at + _GROUP]
            vectors = list(embed_examples(group, self.encoder, self.cache))
            refined = self.refine(vectors)
            chosen = self._choose(group, vectors, refined, max_sentences) if mode == "extract" else [()] * len(group)
            found += [
                self._summary(example, refined, row, mode, indices)
                for row, (example, indices) in enumerate(zip(group, chosen, strict=True))
            ]
        return found

    @torch.no_grad()
    def refine(self, articles: Sequence[ArticleVectors]) -> Refinement:
        """The refinement of embedded articles, on the CPU."""
        refined = self.refiner(Batch.collate(articles).to(self.device), tol=_HALT)
        if not bool(refined.y.isfinite().all()):
            raise RunFailed(
                "the refinement gave numbers that are not finite", fix="The model is damaged; train it again"
            )
        return Refinement(**{name: value.cpu() for name, value in vars(refined).items()})

    def _choose(
        self, examples: Sequence[Example], articles: Sequence[ArticleVectors], refined: Refinement, limit: int
    ) -> list[tuple[int, ...]]:
        """The picked sentences of each article."""
        batch = Batch.collate(articles)
        words = torch.zeros(batch.mask.shape)  # (B, S)
        for row, example in enumerate(examples):
            words[row, : len(example.sentences)] = torch.tensor([float(len(s.split())) for s in example.sentences])
        selector = self.refiner.selector.cpu()  # what `refine` gives is there too
        return selector.choose(batch, refined.y, refined.trajectory[0], last_read(refined), words, limit)

    def _summary(
        self, example: Example, refined: Refinement, row: int, mode: Mode, indices: tuple[int, ...]
    ) -> Summary:
        y: Floats = refined.y[row].numpy()  # (D,)
        neighbours: tuple[Neighbour, ...] = ()
        faithfulness, warning = None, ""
        if mode == "extract":
            text = " ".join(example.sentences[i] for i in indices)
        elif mode == "retrieve":
            assert self.index is not None
            neighbours = self.index.nearest(y)
            text, warning = neighbours[0].text, "this is the summary of another article, the nearest one known"
        else:
            assert self.decoder is not None
            text = self.decoder.generate(refined.y[row : row + 1])[0]
            faithfulness = cosine(encode([text], self.encoder)[0], y)
            if faithfulness < self.faithful:
                warning = f"the text is not close to what was meant (cosine {faithfulness:.2f} < {self.faithful:.2f})"
        return Summary(
            text=text,
            mode=mode,
            confidence=None if mode == "retrieve" else float(refined.quality[row]),
            sentences=example.sentences,
            indices=indices,
            steps=_trace(example, refined, row),
            neighbours=neighbours,
            faithfulness=faithfulness,
            warning=warning,
        )

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model: ``config.json``, ``refiner.safetensors``, and the index and decoder if it has them."""
        folder = Path(folder)
        with atomic_path(folder / "refiner.safetensors") as temporary:
            write_tensors(temporary, self.refiner.state_dict())
        save_own = getattr(self.encoder, "save", None)  # an encoder that was fitted here travels with the model
        if save_own is not None:
            save_own(folder / "encoder")
        if self.index is not None:
            with atomic_path(folder / "index.safetensors") as temporary:
                write_tensors(temporary, {"vectors": torch.from_numpy(self.index.vectors)})
            write_json(folder / "index.json", {"ids": self.index.ids, "texts": self.index.texts})
        if self.decoder is not None:
            self.decoder.save(folder / "decoder")
        about = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "encoder": {
                "name": self.encoder_name,
                "own": save_own is not None,
                "fingerprint": self.encoder.fingerprint.as_dict(),
            },
            "faithful": self.faithful,
            "trained_on": self.trained_on,
        }
        write_json(folder / "config.json", about)  # last: a folder with it is whole

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str = "auto", cache: EmbeddingCache | None = None
    ) -> Summarizer:
        """Load what ``save_pretrained`` or ``rsr-net train`` wrote.

        Args:
            folder: the model's folder, or the run folder around it.
            device: "auto", "cpu", "cuda" or "mps".
            cache: of embeddings.

        Raises:
            UserError: if there is no model, a file is damaged, or the encoder is not the one of the training.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from latentlab_shared.encoders import load_encoder

        home = model_folder(Path(folder))
        place = choose_device(device, ("cuda", "cpu"))  # small as it is, nothing else pays
        try:
            about = read_json(home / "config.json")
            known = isinstance(about, dict) and type(about.get("format")) is int and about["format"] == FORMAT
            if not known:
                what = f"is not a model of format {FORMAT}"
                raise UserError(what, home / "config.json", "Train it with this version")
            if not isinstance(about["config"], dict):
                raise TypeError("its configuration is no mapping")
            config = RsrConfig.from_dict(about["config"])
            named, faithful = about["encoder"], float(about["faithful"])
            if not -1 <= faithful <= 1:
                raise ValueError(f"faithful is {faithful}, not a cosine")
            encoder = load_encoder(str(home / "encoder") if named["own"] else named["name"], device=device)
            _check_same(named["fingerprint"], encoder.fingerprint.as_dict(), named["name"])
            refiner = Refiner(config.model)
            refiner.load_state_dict(load_file(home / "refiner.safetensors"))
            index = _read_index(home, encoder.dim) if (home / "index.json").is_file() else None
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            # RecursionError, of JSON that is nested too deeply, is a RuntimeError.
            what = f"the model is damaged ({' '.join(str(error).split())[:160]})"
            raise UserError(what, home, "Restore it, or train again") from None
        made = cls(
            refiner,
            encoder,
            named["name"],
            config,
            index=index,
            faithful=faithful,
            cache=cache,
            device=place,
            trained_on=str(about.get("trained_on", "")),
        )
        made._decoder_folder = home / "decoder" if (home / "decoder").is_dir() else None
        return made


def model_folder(folder: Path) -> Path:
    """The folder that holds the weights: the given one, or ``checkpoints/best`` of a run.

    Raises:
        UserError: if there is none.
    """
    for home in (folder / "checkpoints" / "best", folder):
        if (home / "refiner.safetensors").is_file() and (home / "config.json").is_file():
            return home
    if (folder / "config.json").is_file():
        about = read_json(folder / "config.json")
        if not isinstance(about, dict) or "encoder" not in about:
            raise UserError("this is no model of rsr-net", folder, "Give the folder that `rsr-net train` wrote")
        raise UserError("this run has not finished", folder, f"Go on: rsr-net train --resume {shell_word(folder)}")
    raise UserError(
        "there is no trained model", folder, "Train one with `rsr-net train`, or give its folder with --model"
    )


def _read_index(home: Path, width: int) -> SummaryIndex:
    """The index of a saved model; a ``ValueError`` if its files do not fit each other or vectors of ``width``."""
    from safetensors.torch import load_file

    known = read_json(home / "index.json")
    ids, texts = known["ids"], known["texts"]
    vectors = load_file(home / "index.safetensors")["vectors"].numpy()
    if not all(isinstance(held, list) and all(isinstance(one, str) for one in held) for held in (ids, texts)):
        raise ValueError("index.json holds something else than texts")
    if not ids or len(ids) != len(texts) or vectors.shape != (len(ids), width) or vectors.dtype != np.float32:
        raise ValueError(f"the index has {len(ids)} ids, {len(texts)} texts and vectors {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("a number of the index is not finite")
    return SummaryIndex(tuple(ids), tuple(texts), vectors)


def cosine(a: Floats, b: Floats) -> float:
    """Cosine of two vectors, (D,) each; 0 if one is zero."""
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def last_read(refined: Refinement) -> torch.Tensor:
    """The weights with which each article was read at its own last step, (B, S); zeros if there was none."""
    if not len(refined.attention):
        return refined.attention.new_zeros(refined.attention.shape[1:])
    last = (refined.steps_used - 1).clamp_min(0)  # (B,)
    return refined.attention[last, torch.arange(len(last))]


def _check_same(trained: dict[str, Any], loaded: dict[str, Any], name: str) -> None:
    differing = sorted(key for key in trained.keys() | loaded.keys() if trained.get(key) != loaded.get(key))
    if differing:
        raise UserError(
            f"the encoder is not the one the model was trained with (another {', '.join(differing)})",
            name,
            "Restore that encoder, or train again",
        )


def _trace(example: Example, refined: Refinement, row: int) -> tuple[Step, ...]:
    """The steps one article took, with the sentences each read most."""
    steps = []
    for k in range(int(refined.steps_used[row])):
        weights = refined.attention[k, row, : len(example.sentences)]  # (S,)
        best = weights.topk(min(_READS, len(weights)))
        reads = tuple(
            Read(i, example.sentences[i], weight)
            for i, weight in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        steps.append(Step(k + 1, float(refined.residuals[k, row]), reads))
    return tuple(steps)
