"""The one object a user holds: what was read in, what to read next out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from latentlab_shared.errors import UserError
from nrms.data.types import Floats, News
from nrms.inference.answer import Answer, Attention, Fallback, Item, Reason
from nrms.inference.catalogue import Catalogue, Entry, Filter, Found, to_ms
from nrms.inference.diversity import diversify
from nrms.inference.search import ExactSearch, GraphSearch, Source
from nrms.model.folder import LoadedModel, load_model_dir, save_model

Search = Literal["exact", "usearch"]
_POOL = 5  # diversity chooses among so many times k articles
_REASONS = 3
_TITLES = 10_000  # vectors of titles kept in memory
CATALOGUE = "catalogue"


@dataclass(frozen=True)
class State:
    """All that one answer is made from; replaced as a whole, so no answer mixes two models or two matrices.

    Attributes:
        model: the encoders.
        source: the articles and their vectors.
        popular: article ids, most read first, for readers without a history.
    """

    model: LoadedModel
    source: Source
    popular: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model.model_id != self.source.model_id:
            raise UserError("the vectors are of another model", self.source.model_id[:12], "Embed the articles again")


class Recommender:
    """Ranks a catalogue for a reading history. Safe to use from several threads.

    Args:
        model: from `load_model_dir`.
        source: the articles; none at first without it.
        popular: article ids, most read first.
        search: "exact" or "usearch"; how catalogues that are given or added are searched.
    """

    def __init__(
        self,
        model: LoadedModel,
        source: Source | Catalogue | None = None,
        popular: Sequence[str] = (),
        search: Search = "exact",
    ) -> None:
        if search not in get_args(Search):
            raise UserError(f"{search!r} is no way to search", "--search", f"Use {' or '.join(get_args(Search))}")
        self._search = search
        self._titles: OrderedDict[tuple[str, str], Floats] = OrderedDict()
        self._lock = threading.Lock()
        if source is None:
            source = Catalogue.empty(model.model_id, model.config.dim)
        self._state = State(model, self._searchable(source), tuple(popular))

    def _searchable(self, source: Source | Catalogue) -> Source:
        if not isinstance(source, Catalogue):
            return source
        if self._search == "exact":
            return ExactSearch(source)
        before = getattr(self, "_state", None)
        graph = before.source if before is not None and isinstance(before.source, GraphSearch) else None
        return GraphSearch(source, graph)

    # -- what it answers from ------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What answers are made from now."""
        return self._state

    @property
    def model_id(self) -> str:
        """The model that answers."""
        return self._state.model.model_id

    def __len__(self) -> int:
        return len(self._state.source)

    def swap(
        self,
        model: LoadedModel | None = None,
        source: Source | Catalogue | None = None,
        popular: Sequence[str] | None = None,
    ) -> None:
        """Exchange model, articles and popularity at once; answers in the making finish on the old ones.

        Raises:
            UserError: if model and vectors do not belong together; then nothing is exchanged.
        """
        now = self._state
        self._state = State(
            model or now.model,
            self._searchable(source) if source is not None else now.source,
            now.popular if popular is None else tuple(popular),
        )

    def add(self, news: Iterable[News]) -> None:
        """Embed articles and add them to the catalogue, or change those whose ids it has."""
        source = self._state.source
        if not isinstance(source, ExactSearch):
            raise UserError("articles of a database are added there", "Recommender.add", "Use the store")
        listed = list({item.id: item for item in news}.values())
        vectors = self._state.model.encode_articles(listed).numpy().astype(np.float16)
        self.swap(source=source.catalogue.updated([entry_of(item) for item in listed], vectors))

    # -- answers -------------------------------------------------------------------------------------------------

    def recommend(
        self,
        history: Sequence[str] = (),
        k: int = 10,
        *,
        history_titles: Sequence[str] = (),
        candidates: Sequence[str] | None = None,
        categories: Sequence[str] = (),
        published_since: datetime | None = None,
        exclude: Iterable[str] = (),
        exclude_read: bool = True,
        diversity: float = 0.0,
        explain: bool = False,
    ) -> Answer:
        """Rank articles for a reader.

        Args:
            history: ids of the articles read, oldest first; a repeated one counts at its last place.
            k: how many to recommend; more than there are gives all.
            history_titles: titles read after those, encoded now.
            candidates: rank only these ids; None for the whole catalogue.
            categories: only articles of these.
            published_since: only articles published at or after it; without a zone it is UTC.
            exclude: ids not to recommend.
            exclude_read: leave out the history.
            diversity: 0 for the best scores, up to 1 for the most different articles.
            explain: say which read articles each score came from.

        Returns:
            The best articles; popular or recent ones if nothing of the history is known.

        Raises:
            UserError: if k is negative or diversity is outside [0, 1].
        """
        if k < 0:
            raise UserError(f"k must not be negative, not {k}", "k")
        if not 0 <= diversity <= 1:
            raise UserError(f"diversity must be in [0, 1], not {diversity}", "diversity")
        state = self._state
        read = state.source.find(_last_places(history))
        known = {entry.id for entry in read.entries}
        missing = [id for id in dict.fromkeys(history) if id not in known]
        entries, vectors = self._with_titles(state, read, history_titles)
        barred = frozenset(exclude) | (frozenset(history) if exclude_read else frozenset())
        wanted = Filter(tuple(categories), to_ms(published_since), barred)
        if not entries:
            return self._fallback(state, k, wanted, candidates, missing)
        user, account = self._user(state, entries, vectors, explain)
        pool = k if diversity == 0 else max(_POOL * k, k + 20)
        if candidates is None:
            found = state.source.search(user, pool if k else 0, wanted)
        else:
            found, unknown = _rank(state.source, candidates, user, pool if k else 0, wanted)
            missing += [id for id in unknown if id not in missing]
        places = range(min(k, len(found.entries)))
        chosen = list(places) if diversity == 0 else diversify(found.vectors, found.scores, k, diversity)
        items = tuple(
            _item(found.entries[i], float(found.scores[i]), account.reasons(found.vectors[i]) if account else ())
            for i in chosen
        )
        attention = account.attention() if account else ()
        return Answer(state.model.model_id, items, None, tuple(missing), attention)

    def user_vector(self, history: Sequence[str] = (), history_titles: Sequence[str] = ()) -> Floats:
        """The user vector (D,) of a history; for an empty one zeros, or the model's prior."""
        state = self._state
        read = state.source.find(_last_places(history))
        return self._user(state, *self._with_titles(state, read, history_titles), False)[0]

    def _with_titles(self, state: State, read: Found, titles: Sequence[str]) -> tuple[list[Entry], Floats]:
        """What was read, the last ``history_length`` of it: entries and vectors (H, D)."""
        keep = state.model.config.history_length
        fresh = _last_places([title for title in titles if title.strip()])[-keep:]
        entries, vectors = read.entries, read.vectors
        if fresh:
            entries = entries + [Entry("", title) for title in fresh]
            vectors = np.concatenate([vectors, self._encode_titles(state.model, fresh)])
        return entries[-keep:], vectors[-keep:]

    def _encode_titles(self, model: LoadedModel, titles: list[str]) -> Floats:
        """Vectors of titles (N, D); those encoded lately are kept, by model."""
        with self._lock:
            held = {title: self._titles.get((model.model_id, title)) for title in titles}
        unknown = [title for title, vector in held.items() if vector is None]
        if unknown:
            held.update(zip(unknown, model.encode_titles(unknown).numpy(), strict=True))
            with self._lock:
                for title in unknown:
                    self._titles[model.model_id, title] = held[title]  # type: ignore[assignment]
                while len(self._titles) > _TITLES:
                    self._titles.popitem(last=False)
        rows = [held[title] for title in titles]
        return np.stack(rows) if rows else np.zeros((0, model.config.dim), np.float32)  # type: ignore[arg-type]

    @torch.inference_mode()
    def _user(
        self, state: State, entries: list[Entry], vectors: Floats, explain: bool
    ) -> tuple[Floats, _Account | None]:
        """The user vector (D,) and, if asked for, what it is made of."""
        model = state.model.model
        read = torch.zeros(1, max(1, len(entries)), model.config.dim)  # (1, H, D)
        read[0, : len(entries)] = torch.from_numpy(vectors)
        read = read.to(model.device)
        mask = torch.full(read.shape[:2], bool(entries), device=read.device)
        user: Floats = model.encode_user(read, mask)[0].float().cpu().numpy()
        if not explain:
            return user, None
        shares, summands = model.user_encoder.parts(read, mask)  # (1, H), (1, H, D)
        return user, _Account(entries, summands[0].float().cpu().numpy(), shares[0].float().cpu().numpy())

    def _fallback(
        self, state: State, k: int, wanted: Filter, candidates: Sequence[str] | None, missing: list[str]
    ) -> Answer:
        """Popular articles, filled up with recent ones; recent ones where nothing is popular."""
        now = to_ms(datetime.now(UTC))
        assert now is not None
        allowed = None if candidates is None else set(candidates)
        popular = state.source.find([id for id in state.popular if allowed is None or id in allowed])
        picked = [entry for entry in popular.entries if wanted.allows(entry, now)][:k]
        kind: Fallback = "popular" if picked else "recent"
        if candidates is not None:
            listed = state.source.find(list(dict.fromkeys(candidates))).entries
            known = {entry.id for entry in listed} | set(missing)
            missing = missing + [id for id in dict.fromkeys(candidates) if id not in known]
            rest = [entry for entry in listed if wanted.allows(entry, now)]
            rest.sort(key=lambda entry: -(entry.published or 0))
        else:
            seen = wanted.exclude | {entry.id for entry in picked}
            rest = state.source.newest(k - len(picked), Filter(wanted.categories, wanted.since, seen)).entries
        ids = {entry.id for entry in picked}
        picked += [entry for entry in rest if entry.id not in ids][: k - len(picked)]
        return Answer(state.model.model_id, tuple(_item(entry, None) for entry in picked), kind, tuple(missing))

    # -- files ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model and, in ``catalogue/``, the articles with their vectors.

        Raises:
            UserError: if the articles live in a database.
        """
        state, folder = self._state, Path(folder)
        if not isinstance(state.source, ExactSearch):
            raise UserError("the articles live in a database", folder, "They stay there; save the model alone")
        save_model(folder, state.model.model, state.model.vocabulary)
        state.source.catalogue.save(folder / CATALOGUE)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str = "cpu", search: Search = "exact") -> Recommender:
        """Load what `save_pretrained` or ``nrms train`` wrote; without a catalogue there it knows no article yet.

        Raises:
            UserError: if there is no model, a file is damaged, or the vectors are of another model.
        """
        model = load_model_dir(Path(folder), device)
        home = Path(folder) / CATALOGUE
        return cls(model, Catalogue.load(home) if home.is_dir() else None, search=search)


@dataclass(frozen=True)
class _Account:
    """What a user vector is made of: the sum of ``summands`` (H, D); ``shares`` (H,) of the attention."""

    entries: list[Entry]
    summands: Floats
    shares: Floats

    def reasons(self, article: Floats) -> tuple[Reason, ...]:
        """The read articles that an article's score (its vector is (D,)) came from most."""
        parts = self.summands @ article  # (H,), summing to the score
        best = np.argsort(-parts, kind="stable")[:_REASONS].tolist()
        return tuple(
            Reason(self.entries[i].id, self.entries[i].title, float(self.shares[i]), float(parts[i])) for i in best
        )

    def attention(self) -> tuple[Attention, ...]:
        """What was read, and how much each weighs."""
        return tuple(
            Attention(entry.id, entry.title, float(share))
            for entry, share in zip(self.entries, self.shares, strict=True)
        )


def entry_of(news: News) -> Entry:
    """An article without its vector."""
    return Entry(news.id, news.title, news.category, to_ms(news.published))


def _last_places(items: Sequence[str]) -> list[str]:
    """The different items, each at its last place."""
    return list(dict.fromkeys(reversed(items)))[::-1]


def _rank(source: Source, candidates: Sequence[str], user: Floats, k: int, wanted: Filter) -> tuple[Found, list[str]]:
    """The k best of some candidates, and the ids among them that are not known."""
    given = list(dict.fromkeys(candidates))
    found = source.find(given)
    known = {entry.id for entry in found.entries}
    now = to_ms(datetime.now(UTC)) or 0
    rows: NDArray[np.int64] = np.array(
        [row for row, entry in enumerate(found.entries) if wanted.allows(entry, now)], np.int64
    )
    # Row by row: a product of the whole matrix may round equal rows differently, and then ties would not be ties.
    scores = np.einsum("nd,d->n", found.vectors[rows], user)
    order = np.lexsort((found.places[rows], -scores))[:k]
    rows = rows[order]
    picked = Found([found.entries[row] for row in rows], found.vectors[rows], scores[order], found.places[rows])
    return picked, [id for id in given if id not in known]


def _item(entry: Entry, score: float | None, reasons: tuple[Reason, ...] = ()) -> Item:
    return Item(entry.id, entry.title, entry.category, entry.published_at, score, reasons)
