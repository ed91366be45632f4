"""The Bing click log that comes with DKN, as MIND-format impressions.

Its rows are ``user TAB title TAB label TAB entities``, grouped by user, without times and without impression ids. So:

- an article is a distinct title;
- the order of a user's rows is taken for the order of time;
- each click is one impression, shown beside the articles that this user did not click;
- its history is the user's clicks in earlier rows: no later click is in it.

Source: Wang et al. 2018, "DKN: Deep Knowledge-Aware Network for News Recommendation", and its published sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from latentlab_shared.errors import UserError
from nrms.data.rows import BadRows, read_lines
from nrms.data.types import Impression, News

_START = datetime(2016, 10, 16)  # only the order is known: every user begins here, and clicks are a minute apart
Click = tuple[str, str, int]  # user, title, label


def read_dkn(path: Path, bad: BadRows | None = None) -> list[Click]:
    """The rows of the file as (user, title, label).

    Raises:
        UserError: for a bad row, by file and line, unless ``bad`` skips it.
    """
    bad = BadRows() if bad is None else bad
    rows: list[Click] = []
    for number, line in read_lines(path, bad):
        columns = line.split("\t")
        try:
            if len(columns) not in (3, 4):
                fix = "Columns are user, title, label and perhaps entities"
                raise UserError(f"has {len(columns)} columns instead of 4", f"{path}:{number}", fix)
            if columns[2].strip() not in ("0", "1"):
                raise UserError(f"the label {columns[2]!r} is not 0 or 1", f"{path}:{number}")
        except UserError as error:
            bad.report(error)
            continue
        rows.append((columns[0].strip(), " ".join(columns[1].split()), int(columns[2].strip())))
    return rows


def dkn_articles(rows: Iterable[Click]) -> list[News]:
    """One article per distinct title, in the order of the file."""
    titles = dict.fromkeys(title for _, title, _ in rows)
    return [News(f"N{number}", title) for number, title in enumerate(titles, start=1)]


def dkn_impressions(rows: Iterable[Click], articles: Iterable[News]) -> list[Impression]:
    """One impression per click of a user who also left an article unclicked.

    A title that the user both clicked and did not click counts as clicked.
    """
    name_of = {article.title: article.id for article in articles}
    clicks: dict[str, list[str]] = {}
    ignored: dict[str, dict[str, None]] = {}
    for user, title, label in rows:
        clicks.setdefault(user, [])
        if label:
            clicks[user].append(name_of[title])
        else:
            ignored.setdefault(user, {})[name_of[title]] = None
    impressions: list[Impression] = []
    for user, clicked in clicks.items():
        others = [name for name in ignored.get(user, {}) if name not in set(clicked)]
        if not others:
            continue
        for place, name in enumerate(clicked):
            number = len(impressions) + 1
            shown, labels = (name, *others), (1, *(0 for _ in others))
            # The clicked article must not stand first everywhere: ties go to the earlier one.
            order = np.random.default_rng(number).permutation(len(shown))
            impressions.append(
                Impression(
                    id=str(number),
                    user=f"U{user}",
                    time=_START + timedelta(minutes=place),
                    history=tuple(clicked[:place]),
                    candidates=tuple(shown[i] for i in order),
                    labels=tuple(labels[i] for i in order),
                )
            )
    return impressions


def user_folds(impressions: Iterable[Impression], folds: int, seed: int) -> list[list[Impression]]:
    """Impressions in ``folds`` parts, all of a user in one of them; users are dealt out at random.

    Raises:
        ValueError: if there are fewer users than folds.
    """
    held = list(impressions)
    users = sorted({i.user for i in held})
    if not 2 <= folds <= len(users):
        raise ValueError(f"{len(users)} users cannot be dealt out to {folds} folds")
    order = np.random.default_rng(seed).permutation(len(users))
    fold_of = {users[i]: place % folds for place, i in enumerate(order)}
    parts: list[list[Impression]] = [[] for _ in range(folds)]
    for impression in held:
        parts[fold_of[impression.user]].append(impression)
    return parts
