"""The work behind the verbs: data, encoder, training, the saved model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab_shared.config import load_config
from latentlab_shared.devices import choose_device
from latentlab_shared.errors import UserError, shell_word
from latentlab_shared.files import read_json, write_json
from latentlab_shared.provenance import environment
from latentlab_shared.runs import RunFolder, model_card
from rsr_net.config import MAX_SEED, RsrConfig
from rsr_net.data import ArticleVectors, BadRows, Example, embed_examples, read_examples
from rsr_net.data.embed import CachedArticles, encode
from rsr_net.data.stories import SPLITS
from rsr_net.inference.summarizer import Summarizer, SummaryIndex, cosine
from rsr_net.training.checkpoint import check_checkpoint

if TYPE_CHECKING:
    from latentlab_shared.embeddings import EmbeddingCache
    from latentlab_shared.encoders import TextEncoder
    from rsr_net.model.refiner import Refiner

RUNS = Path("runs/rsr_net")
BEST = Path("checkpoints") / "best"  # of a run: its model
LSA_WIDTH = 256
_IN_MEMORY = 20_000  # articles, some 2 GB of vectors
_SELECTOR_ARTICLES = 5_000
_DECODER_TEXTS = 20_000
_INDEX_SUMMARIES = 20_000
_SHOWN = 3  # examples of a report
_CHECKED = 64  # validation articles that set the faithfulness threshold

Log = Callable[[str], None]
Progress = Callable[[str, float | None], AbstractContextManager[Callable[[float], None]]]


def no_progress(description: str, total: float | None) -> AbstractContextManager[Callable[[float], None]]:
    """No bar: what advances it is told to nobody."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class RunSettings:
    """What a run was asked for; ``config.json`` of a run folder.

    Attributes:
        data: "sample", "hub:NAME", a file or a folder.
        encoder: "tiny", "lsa", "minilm", a hub name or a folder.
        limit: training articles at most; a tenth as many, and ten at least, for validation.
        skip_bad: leave malformed rows out.
        decoder: train one for the ``generate`` mode.
        seed: of everything.
        rsr: the model and its training.
    """

    data: str = "sample"
    encoder: str = "tiny"
    limit: int | None = None
    skip_bad: bool = False
    decoder: bool = False
    seed: int = 0
    rsr: RsrConfig = RsrConfig()

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1, not {self.limit}", "config.json")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"must be from 0 to {MAX_SEED}, not {self.seed}", "--seed")


PROFILES = {
    "sample": RunSettings(),
    "full": RunSettings(data="hub:abisee/cnn_dailymail", encoder="facebook/bart-base"),
}


def examples_of(
    source: str, split: str | None, *, limit: int | None = None, bad: BadRows | None = None, seed: int = 0
) -> list[Example]:
    """The examples of one part of any source, the built-in sample too."""
    if source == "sample":
        from rsr_net.sample import sample_split

        if split not in (None, *SPLITS):
            raise UserError(f"{split!r} is not a part", "--split", f"Use one of: {', '.join(SPLITS)}")
        parts = (split,) if split else SPLITS
        return [example for part in parts for example in sample_split(part, seed)][:limit]
    return list(read_examples(source, split, limit=limit, bad=bad))


def load_or_fit_encoder(name: str, train: Sequence[Example], device: str, seed: int) -> TextEncoder:
    """An encoder by name; ``lsa`` is fitted on the training articles and their summaries."""
    from latentlab_shared.encoders import LsaEncoder, load_encoder

    if name != "lsa":
        return load_encoder(name, device=device)
    texts = list(chain.from_iterable((e.article, *e.sentences, e.summary) for e in train))
    return LsaEncoder.fit(texts, min(LSA_WIDTH, len(texts) // 2), seed=seed)


def open_cache(encoder: TextEncoder, folder: Path | None) -> AbstractContextManager[EmbeddingCache | None]:
    """The cache of an encoder below ``folder``; none for encoders that are faster than a disk.

    Each encoder gets a folder of its own, named by its fingerprint.
    """
    from latentlab_shared.embeddings import EmbeddingCache
    from latentlab_shared.encoders import TransformerEncoder

    if folder is None or not isinstance(encoder, TransformerEncoder):
        return nullcontext()
    return EmbeddingCache(folder / encoder.fingerprint.digest().hex()[:16], encoder.fingerprint, encoder.dim)


def train_run(
    output: Path,
    settings: RunSettings,
    *,
    config_file: Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    cache_dir: Path | None = None,
    log: Log = lambda _: None,
    detail: Log = lambda _: None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train a summarizer into a run folder.

    Args:
        output: the run folder.
        settings: what to train on; with ``resume`` the run's own settings are read instead (a decoder can be added).
        config_file: model and training keys, over the defaults.
        overrides: ``key=value``, over the file.
        resume: go on with the run in ``output``.
        overwrite: throw away an earlier run in ``output``.
        device: "auto", "cpu", "cuda" or "mps".
        cache_dir: where the embeddings are kept.
        log: told what happens, a line at a time.
        detail: told the figures of every epoch.
        progress: makes the progress bar of the embedding.

    Returns:
        Where the model is, and the validation scores.
    """
    choose_device(device)  # an absent one shows at once, as do typing errors
    if resume:
        wants_decoder = settings.decoder
        settings = _settings_of(RunFolder.read(output))
        settings = replace(settings, decoder=settings.decoder or wants_decoder)
    else:
        _config(config_file, overrides, RsrConfig.default("rsr"))
    fitted = None if settings.encoder == "lsa" else load_or_fit_encoder(settings.encoder, (), device, settings.seed)
    bad = BadRows(skip=settings.skip_bad)
    train = examples_of(settings.data, "train", limit=settings.limit, bad=bad, seed=settings.seed)
    few = None if settings.limit is None else max(10, settings.limit // 10)
    valid = examples_of(settings.data, "valid", limit=few, bad=bad, seed=settings.seed)
    train, valid = _with_summaries(train, "train", settings.data), _with_summaries(valid, "valid", settings.data)
    if len(valid) < 2:
        what = f"{len(train)} training and {len(valid)} validation articles are too few to train on"
        raise UserError(what, settings.data, "Give more articles")
    encoder = fitted or load_or_fit_encoder(settings.encoder, train, device, settings.seed)
    if not resume:
        base = RsrConfig.default("rsr", encoder.dim)
        base = replace(base, train=replace(base.train, seed=settings.seed))
        settings = replace(settings, rsr=_config(config_file, overrides, base))
    if settings.rsr.model.input_dim != encoder.dim:
        raise UserError(
            f"model.input_dim is {settings.rsr.model.input_dim}, the encoder {settings.encoder} gives {encoder.dim}",
            output / "config.json" if resume else "--set model.input_dim",
            "Restore the run's own settings" if resume else "Leave it out",
        )
    inputs = {settings.data: digest(train + valid), f"encoder {settings.encoder}": _encoder_name(fitted)}
    if resume:
        _check_inputs(output, inputs)
        check_checkpoint(output, settings.rsr)
    with open_cache(encoder, cache_dir) as cache:
        run = (
            RunFolder.resume(output)
            if resume
            else RunFolder.create(output, settings, seed=settings.seed, data=inputs, overwrite=overwrite)
        )
        if resume and (output / BEST / "config.json").is_file():
            log(f"{output}: the training had ended; the model is written again")
        log(f"{len(train)} articles to train on, {len(valid)} for validation, encoder {settings.encoder}")
        if bad.count or bad.without_article:
            log(f"left out: {bad.count} malformed, {bad.without_article} without article text")
        with run:
            try:
                results = _train(run, settings, train, valid, encoder, cache, resume, device, log, detail, progress)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"go on with rsr-net train --resume {shell_word(output)}") from None
    return {"run": str(output), **results}


def _train(
    run: RunFolder,
    settings: RunSettings,
    train: list[Example],
    valid: list[Example],
    encoder: TextEncoder,
    cache: EmbeddingCache | None,
    resume: bool,
    device: str,
    log: Log,
    detail: Log,
    progress: Progress,
) -> dict[str, Any]:
    """Embed, fit every part, and write the model, its scores and its card into the run folder."""
    with progress("embedding", len(train) + len(valid)) as advance:
        embedded = [embed(part, encoder, cache, advance) for part in (train, valid)]
    log("fitting the refiner")
    refiner = _fit(embedded[0], embedded[1], settings.rsr, run, resume, device, detail)
    log("fitting the choice of sentences")
    _fit_selector(refiner, train, embedded[0], embedded[1], settings.rsr)
    index = index_of(train, encoder, cache)
    known = settings.data if settings.data in ("sample",) or settings.data.startswith("hub:") else ""
    trained_on = known or Path(settings.data).name
    summarizer = Summarizer(refiner, encoder, settings.encoder, settings.rsr, index=index, trained_on=trained_on)
    if settings.decoder:
        log("training the decoder")
        fit_decoder(summarizer, train, embedded[1], cache, settings.seed)
    summarizer.save_pretrained(run.path / BEST)
    results = _validation(summarizer, embedded[1])
    run.write_results(results)
    run.write_card(_card(settings, results, run))
    return results


def _fit(
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    config: RsrConfig,
    run: RunFolder,
    resume: bool,
    device: str,
    detail: Log,
) -> Refiner:
    """Train, with every epoch in the run's metrics."""
    from rsr_net.training import fit

    def note(epoch: int, values: dict[str, float]) -> None:
        if resume:
            run.rewind(epoch - 1)  # a kill between the figures and the checkpoint leaves an epoch that comes again
        run.log(epoch, **values)
        detail(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    again = run.path if resume else None
    return fit(
        train, valid, config, run=run.path, resume=again, log=note, device=choose_device(device, ("cuda", "cpu"))
    )


def _fit_selector(
    refiner: Refiner,
    examples: Sequence[Example],
    train: Sequence[ArticleVectors],
    valid: Sequence[ArticleVectors],
    config: RsrConfig,
) -> None:
    """Fit which sentences are picked, on the first few thousand training articles."""
    import torch

    from rsr_net.training.ridge import CrossFit
    from rsr_net.training.selector import fit_selector

    settings, starts = config.train, None
    if len(train) <= _SELECTOR_ARTICLES:  # with more, the start has hardly seen any one article's target
        fits = CrossFit(train, settings.cross_fits, settings.seed)
        starts = torch.from_numpy(fits.starts(fits.best_penalty(settings.ridge, valid)))
    some = slice(0, _SELECTOR_ARTICLES)
    fit_selector(refiner, train[some], examples[some], starts=starts, seed=settings.seed)


def embed(
    examples: Sequence[Example],
    encoder: TextEncoder,
    cache: EmbeddingCache | None,
    advance: Callable[[float], None] = lambda _: None,
) -> Sequence[ArticleVectors]:
    """The vectors of examples: in memory, or on disk where there are too many of them."""
    vectors = embed_examples(examples, encoder, cache, advance=advance)
    if cache is None or len(examples) <= _IN_MEMORY:
        return list(vectors)
    for _ in vectors:  # into the cache
        pass
    return CachedArticles(examples, cache)


def _settings_of(run: RunFolder) -> RunSettings:
    from latentlab_shared.config import from_dict

    where, held = run.path / "config.json", run.config
    absent = {field.name for field in fields(RunSettings)} - set(held) if isinstance(held, dict) else {"everything"}
    if absent:
        raise UserError(f"the run is damaged ({min(absent)} is missing)", where, "Restore it, or start a new run")
    return from_dict(RunSettings, held, where)


def _config(file: Path | None, overrides: Iterable[str], base: RsrConfig) -> RsrConfig:
    """The settings of the model and its training."""
    config = load_config(RsrConfig, file, overrides, base)
    if config.recipe != "rsr":
        fix = "Leave it out; the seed's network is measured with `rsr-net bench` and `rsr-net folds`"
        raise UserError(f"`train` makes models of the recipe rsr, not {config.recipe}", "recipe", fix)
    return config


def _encoder_name(encoder: TextEncoder | None) -> str:
    """A checksum of an encoder; of one that is fitted on the articles, that it is so."""
    return encoder.fingerprint.digest().hex() if encoder else "fitted on the training articles"


def _check_inputs(run: Path, inputs: dict[str, str]) -> None:
    """Refuse to go on with other articles, or another encoder, than the run began with."""
    held = read_json(run / "environment.json")
    began = held.get("data") if isinstance(held, dict) else None
    if not isinstance(began, dict):
        raise UserError("the run is damaged (its data is missing)", run / "environment.json", "Start a new run")
    for name, checksum in inputs.items():
        if began.get(name) != checksum:
            raise UserError(
                f"{name} is not what the run began with", run, "Restore it, or start a run in another folder"
            )


def _with_summaries(examples: list[Example], split: str, source: str) -> list[Example]:
    kept = [example for example in examples if example.highlights]
    if not kept:
        raise UserError(
            f"the {split} part has no article with a summary", source, "Training needs articles with highlights"
        )
    return kept


def digest(examples: Iterable[Example]) -> str:
    """A hash of what was read: ids, articles and summaries, in order."""
    found = hashlib.sha256()
    for example in examples:
        found.update("\x1f".join((example.id, *example.sentences, "\x1e", *example.highlights, "\x1d")).encode())
    return found.hexdigest()


def index_of(examples: Sequence[Example], encoder: TextEncoder, cache: EmbeddingCache | None) -> SummaryIndex:
    """The index of the training summaries: the first 20,000 of them."""
    kept = [example for example in examples if example.highlights][:_INDEX_SUMMARIES]
    texts = tuple(example.summary for example in kept)
    return SummaryIndex(ids=tuple(example.id for example in kept), texts=texts, vectors=encode(texts, encoder, cache))


def fit_decoder(
    summarizer: Summarizer,
    train: Sequence[Example],
    valid: Sequence[ArticleVectors],
    cache: EmbeddingCache | None,
    seed: int,
) -> None:
    """Give a summarizer the small decoder, trained on the training summaries and their sentences.

    The faithfulness below which a text gets a warning is the one that nine of ten validation articles reach.
    """
    import numpy as np
    import torch

    from rsr_net.inference.decoder import VectorDecoder

    texts = list(dict.fromkeys(chain([e.summary for e in train], *(e.highlights for e in train))))[:_DECODER_TEXTS]
    decoder = VectorDecoder.fit(texts, torch.from_numpy(encode(texts, summarizer.encoder, cache)), seed=seed)
    meant = summarizer.refine(valid[:_CHECKED]).y
    written = encode(decoder.generate(meant, beams=1), summarizer.encoder)
    reached = [cosine(a, b) for a, b in zip(written, meant.numpy(), strict=True)]
    summarizer.decoder, summarizer.faithful = decoder, float(np.quantile(reached, 0.1))


def _validation(summarizer: Summarizer, valid: Sequence[ArticleVectors]) -> dict[str, Any]:
    """R² over the mean of the targets and mean cosine, for the start and the refined state."""
    import numpy as np

    refined = summarizer.refine(valid)
    target = np.stack([article.target for article in valid if article.target is not None])  # (N, D)
    center = summarizer.refiner.center.cpu().numpy()
    variance = float(((target - center) ** 2).sum())
    scores = {}
    for name, y in (("start", refined.trajectory[0].numpy()), ("refined", refined.y.numpy())):
        scores[name] = {
            "r2": 1 - float(((target - y) ** 2).sum()) / variance,
            "cosine": float(np.mean([cosine(a, b) for a, b in zip(target, y, strict=True)])),
        }
    return {"articles": len(valid), "validation": scores, "steps": float(refined.steps_used.float().mean())}


def _card(settings: RunSettings, results: dict[str, Any], run: RunFolder) -> str:
    scores = results["validation"]
    lines = [f"- {name}: R² {s['r2']:.3f}, cosine {s['cosine']:.3f}" for name, s in scores.items()]
    return model_card(
        "RSR-Net summarizer",
        f"Refines the embedding of a summary ({settings.encoder}) and picks the sentences that stand for it.",
        {
            "Use": f"`rsr-net summarize article.txt --model {shell_word(run.path)}`",
            "Training data": f"`{settings.data}`" + (f", {settings.limit} articles" if settings.limit else ""),
            "Validation": "\n".join(lines),
            "Limits": "It knows the kind of text it was trained on. Generated names and numbers are often wrong.",
        },
        run,
    )


def export_model(model: Path, output: Path, formats: Sequence[str], log: Log = lambda _: None) -> list[dict[str, Any]]:
    """Write a model's refiner in portable forms.

    Args:
        model: a run folder or a saved model.
        output: the folder.
        formats: "onnx", "torch", "safetensors".
        log: told what is being written.

    Returns:
        For each file its path, size in bytes, and largest relative difference to the original.

    Raises:
        UserError: for an unknown format.
        RunFailed: if an exported form gives other numbers.
    """
    from rsr_net.inference.export import export_onnx, export_safetensors, export_torch

    known = {
        "onnx": (export_onnx, "refiner.onnx"),
        "torch": (export_torch, "refiner.pt2"),
        "safetensors": (export_safetensors, "refiner.safetensors"),
    }
    for name in formats:
        if name not in known:
            raise UserError(f"{name!r} is not a format", "--format", f"Use one of: {', '.join(known)}")
    refiner = Summarizer.from_pretrained(model, device="cpu").refiner
    written = []
    for name in formats:
        write, file = known[name]
        log(f"writing {output / file} and comparing it with the original")
        off = write(refiner, output / file)
        written.append({"file": str(output / file), "bytes": (output / file).stat().st_size, "difference": off})
    return written


def evaluate_run(
    model: Path,
    *,
    data: str | None = None,
    split: str = "test",
    output: Path | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    limit: int | None = None,
    skip_bad: bool = False,
    log: Log = lambda _: None,
) -> dict[str, Any]:
    """Evaluate a model and write ``results.json``, ``plots/`` and ``report.html``.

    Args:
        model: a run folder, or a saved model.
        data: the source of the articles; None takes the run's own.
        split: its part.
        output: where to write; None takes the run folder.
        cache_dir: where the embeddings are kept.
        device: "auto", "cpu", "cuda" or "mps".
        limit: articles at most.
        skip_bad: leave malformed rows out.
        log: told what happens.

    Raises:
        UserError: for a saved model without ``data`` or without ``output``, and for articles without summaries.
    """
    from rsr_net.evaluation.held_out import evaluate
    from rsr_net.evaluation.report import write_report

    if not model.is_dir():
        raise UserError("there is no such folder", model, "Give a run folder of `rsr-net train`, or a saved model")
    is_run = (model / "environment.json").is_file()
    settings = _settings_of(RunFolder.read(model)) if is_run else None
    if settings is None and (data is None or output is None):
        raise UserError("this is a model without its run", model, "Give --data and --output-dir")
    source, folder = data or (settings or RunSettings()).data, output or model
    bad = BadRows(skip=skip_bad)
    seed = settings.seed if settings else 0
    examples = _with_summaries(examples_of(source, split, limit=limit, bad=bad, seed=seed), split, source)
    log(f"{len(examples)} articles of the {split} part of {source}")
    summarizer = Summarizer.from_pretrained(model, device=device)
    with open_cache(summarizer.encoder, cache_dir) as cache:
        articles = list(embed_examples(examples, summarizer.encoder, cache))
    log("refining, and scoring every baseline")
    found = evaluate(summarizer, examples, articles)
    facts = environment(seed, {source: digest(examples)})
    what = "generated articles (the built-in sample)" if source == "sample" else f"articles of {source}"
    about = f"{found.articles} held-out {what}, {split} part. {facts['date']}, commit {facts['commit'] or 'none'}."
    shown = [(e, s.text) for e, s in zip(examples, summarizer.summarize_examples(examples[:_SHOWN]), strict=False)]
    report = write_report(folder, found, f"RSR-Net: {model}", about, shown)
    results = {"data": source, "split": split, **asdict(found), "skipped": bad.count, "report": str(report)}
    before = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
    if "validation" in before:  # what the training wrote stays
        results["validation"] = before["validation"]
    write_json(folder / "results.json", {**results, "environment": facts})
    return results
