"""Readers: every malformed row by file and line, every odd one counted; the arrays; preparation."""

import tracemalloc
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from nrms.config import ModelConfig
from nrms.data.dkn import dkn_articles, dkn_impressions, read_dkn, user_folds
from nrms.data.log import Ragged, build_log, open_log
from nrms.data.mind import behaviors_row, format_time, news_row, parse_time, read_behaviors, read_news
from nrms.data.prepare import prepare, write_part
from nrms.data.rows import BadRows
from nrms.data.tokens import token_table, tokenise
from nrms.data.types import Impression, News
from nrms.data.vectors import glove_vectors, read_glove
from nrms.data.vocabulary import WordVocabulary, load_vocabulary, save_vocabulary

NEWS_LINE = 'N1\tsports\tgolf\tA "title" here\tText\thttps://x\t[]\t[]'
LOG_LINE = "1\tU1\t11/9/2019 2:14:46 PM\tN1 N2\tN1-1 N2-0"
WORDS = WordVocabulary(["a", "title", "here", "storm"])
SMALL = ModelConfig(heads=2, head_dim=4, word_dim=6, query_dim=5, title_length=4, history_length=3)


def file(tmp_path: Path, content: str | bytes, name: str = "f.tsv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- MIND's files -----------------------------------------------------------------------------------------------------


def test_news_rows_keep_stray_quotes_and_lose_bom_and_crlf(tmp_path: Path) -> None:
    path = file(tmp_path, b"\xef\xbb\xbf" + NEWS_LINE.encode() + b"\r\n\r\n" + b'N2\tx\ty\t"\t\t\t\t\r\n')
    assert list(read_news(path)) == [
        News("N1", 'A "title" here', "sports", "golf", "Text"),
        News("N2", '"', "x", "y", ""),
    ]


def test_odd_titles_are_read_as_they_are(tmp_path: Path) -> None:
    titles = ["", "   ", "🙂🚀", "新闻标题", "x" * 10_000]
    bad = BadRows()
    path = file(tmp_path, "".join(f"N{i}\ta\tb\t{t}\t\t\t\t\n" for i, t in enumerate(titles)))
    news = list(read_news(path, bad))
    assert [n.title for n in news] == [t.strip() for t in titles]
    assert bad.notes["articles without a title"] == 2
    tokens, lengths = tokenise(news, WordVocabulary.build(n.title for n in news), SMALL)
    assert lengths.tolist() == [0, 0, 2, 1, 1] and (tokens[0] == 0).all()


def test_behaviors_rows(tmp_path: Path) -> None:
    path = file(tmp_path, f"{LOG_LINE}\n2\tU2\t1/2/2019 12:00:01 AM\t\tN7-0 N8-1 N9-1\n")
    first, second = read_behaviors(path)
    assert first == Impression("1", "U1", datetime(2019, 11, 9, 14, 14, 46), ("N1", "N2"), ("N1", "N2"), (1, 0))
    assert second.history == () and second.time == datetime(2019, 1, 2, 0, 0, 1) and second.labels == (0, 1, 1)
    test_part = file(tmp_path, "1\tU1\t11/9/2019 2:14:46 PM\tN1\tN1 N2\n")
    assert next(read_behaviors(test_part)).labels is None


BAD_LOG = {
    "columns": ("1\tU1\t11/9/2019 2:14:46 PM\tN1", "4 columns instead of 5"),
    "news file": (NEWS_LINE, "swapped"),
    "no label": (LOG_LINE.replace("N2-0", "N2"), "'N2' has no label"),
    "label": (LOG_LINE.replace("N2-0", "N2-7"), "'N2-7' is not 0 or 1"),
    "time": (LOG_LINE.replace("11/9", "13/45"), "is no time"),
    "no candidates": ("1\tU1\t11/9/2019 2:14:46 PM\tN1\t", "no candidates"),
    "no id": (LOG_LINE.replace("N2-0", "-0"), "a label and no id"),
    "no user": (LOG_LINE.replace("U1", " "), "no user id"),
    "zero byte": (LOG_LINE.replace("U1", "U\x00"), "zero bytes"),
    "unlabelled": (LOG_LINE.replace("N1-1 N2-0", "N1 N2"), "lacks labels"),
}
BAD_NEWS = {
    "columns": ("N9\tonly", "2 columns instead of 8"),
    "commas": ("N9,a,b,c,d,e,f,g", "comma-separated"),
    "no id": (NEWS_LINE.replace("N1", ""), "no article id"),
    "duplicate": (NEWS_LINE.replace("title", "tale"), "another title"),
    "cp1252": (NEWS_LINE.replace("N1", "N9").encode().replace(b"title", b"t\x96"), "iconv"),
    "log": (LOG_LINE, "swapped"),
}


@pytest.mark.parametrize("fault", BAD_LOG)
def test_a_bad_log_row_is_named_and_can_be_skipped(tmp_path: Path, fault: str) -> None:
    line, message = BAD_LOG[fault]
    check_bad_row(tmp_path, LOG_LINE, line, message, read_behaviors)


@pytest.mark.parametrize("fault", BAD_NEWS)
def test_a_bad_news_row_is_named_and_can_be_skipped(tmp_path: Path, fault: str) -> None:
    line, message = BAD_NEWS[fault]
    check_bad_row(tmp_path, NEWS_LINE, line, message, read_news)


def check_bad_row(tmp_path: Path, good: str, line: str | bytes, message: str, read) -> None:  # type: ignore[no-untyped-def]
    raw = line if isinstance(line, bytes) else line.encode()
    last = good.replace("N1\t", "N3\t")
    path = file(tmp_path, good.encode() + b"\n" + raw + b"\n" + last.encode() + b"\n")
    with pytest.raises(UserError) as error:
        list(read(path))
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
    assert "--skip-bad" in str(error.value)
    bad = BadRows(skip=True)
    assert len(list(read(path, bad))) == 2
    assert bad.count == 1 and bad.first[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize("read", [read_news, read_behaviors])
def test_files_that_are_none(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    for path in (tmp_path / "absent", tmp_path, file(tmp_path, b""), file(tmp_path, b"\n \n")):
        with pytest.raises(UserError) as error:
            list(read(path, BadRows(skip=True)))
        assert str(path) in str(error.value)


@settings(max_examples=200)
@given(st.datetimes(datetime(1999, 1, 1), datetime(2100, 1, 1)))
def test_times_are_written_as_they_are_read(time: datetime) -> None:
    time = time.replace(microsecond=0)
    assert parse_time(format_time(time), "") == time
    assert parse_time(time.isoformat(), "") == time


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    news = [News("N1", 'a "b', "c", "d", "e"), News("N2", "t")]
    log = [
        Impression("1", "U1", datetime(2020, 1, 1), (), ("N1", "N2"), (1, 0)),
        Impression("2", "U1", datetime(2020, 1, 1, 13), ("N1",), ("N1", "N2"), (0, 1)),
    ]
    assert write_part(tmp_path, news, log) == 2
    assert list(read_news(tmp_path / "news.tsv")) == news
    assert list(read_behaviors(tmp_path / "behaviors.tsv")) == log
    assert behaviors_row(log[0]) == "1\tU1\t1/1/2020 12:00:00 AM\t\tN1-1 N2-0"
    assert news_row(news[1]).count("\t") == 7


# -- vocabulary and vectors -------------------------------------------------------------------------------------------


def test_vocabulary(tmp_path: Path) -> None:
    words = WordVocabulary.build(["B a a, c", "a B"], min_count=2)
    assert words.words == ("a", "b") and len(words) == 4
    assert words.encode(["A b z", " ", "a " * 9], 3) == [[2, 3, 1], [], [2, 2, 2]]
    save_vocabulary(tmp_path, words)
    assert load_vocabulary(tmp_path).encode(["A b z"], 3) == [[2, 3, 1]]


def test_token_rows() -> None:
    config = ModelConfig(title_length=3, abstract_length=2, views=("title", "abstract", "category"))
    news = [News("x", "a title here storm", "storm here", "", "title title title"), News("y", "")]
    table = token_table(iter(news), WORDS, config)
    assert table.tokens.tolist() == [[0] * 7, [2, 3, 4, 3, 3, 5, 0], [0] * 7]
    assert table.lengths.tolist() == [[0, 0, 0], [3, 2, 1], [0, 0, 0]]
    assert table.row_of == {"x": 1, "y": 2}


def test_glove_files(tmp_path: Path) -> None:
    content = b"4 3\nstorm 1 2 3\n. . . 4 5 6\nTitle 7 8 9\nna\x96ve 0 0 0\n"
    path = file(tmp_path, content, "glove.txt")
    notes: Counter[str] = Counter()
    rows = dict(read_glove(path, notes))
    assert [*rows] == ["storm", ". . .", "Title", "na–ve"] and rows[". . ."].tolist() == [4, 5, 6]
    assert notes == {"words read as cp1252": 1, "words of several tokens": 1}
    words = glove_vectors(path, WORDS)
    assert words.vectors is not None and words.notes["words with a pretrained vector"] == 2
    assert words.vectors[5].tolist() == [1, 2, 3] and words.vectors[3].tolist() == [7, 8, 9]
    assert (words.vectors[0] == 0).all() and np.isfinite(words.vectors).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"b 1 2", "2 numbers instead of 3"),
        (b"b 1 2 3 4", "4 numbers instead of 3"),
        (b"b 1 x 3", "else than numbers"),
        (b"b 1 nan 3", "finite"),
    ],
)
def test_bad_glove_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = file(tmp_path, b"a 1 2 3\nc 1 2 3\n" + line + b"\n", "glove.txt")
    with pytest.raises(UserError) as error:
        list(read_glove(path))
    assert str(error.value).startswith(f"{path}:3: ") and message in str(error.value)


def test_files_that_are_no_vectors(tmp_path: Path) -> None:
    for content in (b"", b"some plain text\nof words\n"):
        with pytest.raises(UserError):
            list(read_glove(file(tmp_path, content, "glove.txt")))
    with pytest.raises(UserError, match="none of the training part's words"):
        glove_vectors(file(tmp_path, b"zebra 1 2\nyak 1 2\n", "glove.txt"), WORDS)


# -- the log as arrays ------------------------------------------------------------------------------------------------

NEWS = [News("N1", "a title"), News("N2", "storm"), News("N3", "")]


def impression(number: int, user: str, history: str, shown: str, labels: tuple[int, ...] | None) -> Impression:
    time = datetime(2020, 1, 1, number)
    return Impression(str(number), user, time, tuple(history.split()), tuple(shown.split()), labels)


LOG = [
    impression(1, "U1", "N1 N9 N2", "N2 N8", (1, 0)),
    impression(2, "U1", "N1 N9 N2", "N1 N3", (0, 0)),
    impression(3, "U2", "", "N1 N2", (0, 1)),
    impression(4, "U1", "N1 N2 N3 N1", "N3", (1,)),
]


def test_a_log_as_arrays() -> None:
    log = build_log(NEWS, LOG, WORDS, SMALL)
    assert [log.candidates[i].tolist() for i in range(4)] == [[2, 0], [1, 3], [1, 2], [3]]
    assert [log.histories[h].tolist() for h in log.history_of] == [[1, 2], [1, 2], [], [2, 3, 1]]
    assert len(log.histories) == 3  # the repeated history is stored once
    assert log.users == ["U1", "U2"] and log.user_of.tolist() == [0, 0, 1, 0]
    assert [log.impression_id(i) for i in range(4)] == ["1", "2", "3", "4"]
    assert log.known_labels().tolist() == [1, 0, 0, 0, 0, 1, 1]
    assert log.notes == {
        "impressions with one class only": 2,
        "impressions without history": 1,
        "unknown articles dropped from histories": 1,
        "unknown candidates scored as cold": 1,
    }
    some = log.take(np.array([3, 0]))
    assert [some.candidates[i].tolist() for i in range(2)] == [[3], [2, 0]] and some.known_labels().tolist() == [
        1,
        1,
        0,
    ]
    assert some.impression_id(0) == "4" and len(log.thinned(2)) == 2 and log.thinned(0) is log


def test_the_cache_holds_the_same_log_and_follows_the_content(tmp_path: Path) -> None:
    write_part(tmp_path / "p", NEWS, LOG)
    fresh = open_log(tmp_path / "p", WORDS, SMALL)
    cached = [open_log(tmp_path / "p", WORDS, SMALL, cache=tmp_path / "c") for _ in range(2)]
    for log in cached:
        for name in ("user_of", "times", "history_of", "labels"):
            assert np.array_equal(getattr(log, name), getattr(fresh, name))
        for name in ("histories", "candidates", "ids"):
            assert np.array_equal(getattr(log, name).values, getattr(fresh, name).values)
            assert np.array_equal(getattr(log, name).offsets, getattr(fresh, name).offsets)
        assert np.array_equal(log.titles.tokens, fresh.titles.tokens) and log.titles.row_of == fresh.titles.row_of
        assert (log.articles, log.users, log.notes) == (fresh.articles, fresh.users, fresh.notes)
    assert len(list((tmp_path / "c").iterdir())) == 1
    write_part(tmp_path / "p", NEWS, LOG[:2])
    assert len(open_log(tmp_path / "p", WORDS, SMALL, cache=tmp_path / "c")) == 2
    open_log(tmp_path / "p", WordVocabulary(["a"]), SMALL, cache=tmp_path / "c")
    homes = list((tmp_path / "c").iterdir())
    assert len(homes) == 3
    (homes[0] / "times.npy").write_bytes(b"broken")
    (homes[1] / "times.npy").write_bytes(b"broken")
    (homes[2] / "times.npy").write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        open_log(tmp_path / "p", WORDS, SMALL, cache=tmp_path / "c")


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.data())
def test_rows_of_a_ragged_array(rows: list[list[int]], data: st.DataObject) -> None:
    offsets = np.cumsum([0, *map(len, rows)])
    ragged = Ragged(np.array([v for row in rows for v in row], np.int32), offsets)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))
    taken = ragged.take(np.array(chosen, np.int64))
    assert [taken[i].tolist() for i in range(len(taken))] == [rows[i] for i in chosen]


def test_an_unlabelled_part_can_be_read_but_not_trained_on(tmp_path: Path) -> None:
    write_part(tmp_path, NEWS, [impression(1, "U1", "N1", "N1 N2", None)])
    log = open_log(tmp_path, WORDS, SMALL, cache=tmp_path / "c")
    with pytest.raises(UserError, match="no labels"):
        log.known_labels()


def test_reading_a_large_log_needs_little_memory(tmp_path: Path) -> None:
    rows = (impression(n % 24, f"U{n}", "N1 N2 " * 10, "N1 N2 N3 " * 10, (0, 1, 0) * 10) for n in range(20_000))
    write_part(tmp_path, NEWS, rows)
    tracemalloc.start()
    log = open_log(tmp_path, WORDS, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 30 candidates of 5 bytes, 3 articles of history, fixed arrays, a user name: lists would take ten times as much.
    assert len(log) == 20_000 and peak / len(log) < 1000


# -- other sources ----------------------------------------------------------------------------------------------------


def test_the_bing_log(tmp_path: Path) -> None:
    text = "7\tone\t1\t-\n7\ttwo\t0\t-\n7\tthree\t1\t-\n7\tone\t0\t-\n8\tfour\t1\t-\n9\tfive\t1\t-\n9\tsix\t0\t-\n"
    rows = read_dkn(file(tmp_path, text))
    news = dkn_articles(rows)
    log = dkn_impressions(rows, news)
    title = {n.id: n.title for n in news}
    got = [(i.user, [title[h] for h in i.history], dict(zip(map(title.get, i.candidates), i.labels or (), strict=True)))
           for i in log]  # fmt: skip
    assert got == [  # user 8 ignored nothing; the title clicked and ignored counts as clicked
        ("U7", [], {"one": 1, "two": 0}),
        ("U7", ["one"], {"three": 1, "two": 0}),
        ("U9", [], {"five": 1, "six": 0}),
    ]
    with pytest.raises(UserError, match=":2: the label"):
        read_dkn(file(tmp_path, "1\ta\t1\t\n1\tb\t2\t\n"))
    assert read_dkn(file(tmp_path, "1\ta\t1\x1e\n")) == [("1", "a", 1)]


@given(st.integers(2, 5), st.integers(0, 3))
def test_folds_share_no_user_and_lose_none(folds: int, seed: int) -> None:
    log = [impression(n % 24, f"U{n % 7}", "", "N1", (1,)) for n in range(30)]
    parts = user_folds(log, folds, seed)
    users = [{i.user for i in part} for part in parts]
    assert sum(map(len, users)) == 7 and len(set().union(*users)) == 7
    assert sum(map(len, parts)) == 30
    with pytest.raises(ValueError, match="cannot be dealt"):
        user_folds(log, 8, 0)


def events(tmp_path: Path, rows: str, header: str = "user\ttime\tarticle\tclicked\timpression") -> Path:
    file(tmp_path, "id\ttitle\tcategory\n" + "".join(f"A{i}\ttitle {i}\tc\n" for i in range(9)), "articles.tsv")
    file(tmp_path, f"{header}\n{rows}", "events.tsv")
    return tmp_path


def test_logs_with_impressions(tmp_path: Path) -> None:
    source = events(
        tmp_path,
        "u\t2026-01-01T10:00:00\tA1\t1\t1\nu\t2026-01-01T10:00:00\tA2\t0\t1\nu\t2026-01-02T10:00:00\tA3\t0\t2\n"
        "u\t2026-01-02T10:00:00\tA4\t1\t2\nu\t2026-01-03T10:00:00\tA1\t0\t3\nu\t2026-01-03T10:00:00\tA5\t1\t3\n",
    )
    account = prepare(str(source), tmp_path / "out")
    assert account["impressions"] == {"train": 2, "dev": 1}
    log = [*read_behaviors(tmp_path / "out/train/behaviors.tsv"), *read_behaviors(tmp_path / "out/dev/behaviors.tsv")]
    assert [(i.history, i.candidates, i.labels) for i in log] == [
        ((), ("A1", "A2"), (1, 0)),
        (("A1",), ("A3", "A4"), (0, 1)),
        (("A1", "A4"), ("A1", "A5"), (0, 1)),
    ]


def test_logs_of_clicks_only_take_negatives_that_others_clicked_before(tmp_path: Path) -> None:
    rows = "".join(f"{'uv'[n % 2]}\t2026-01-01T{n:02}:00:00\tA{n}\n" for n in range(9))
    prepare(str(events(tmp_path, rows, "user\ttime\tarticle")), tmp_path / "out")
    log = [*read_behaviors(tmp_path / "out/train/behaviors.tsv"), *read_behaviors(tmp_path / "out/dev/behaviors.tsv")]
    assert len(log) == 9
    for n, i in enumerate(log):
        assert i.labels is not None and sum(i.labels) == 1
        assert i.candidates[i.labels.index(1)] == f"A{n}"
        assert i.history == tuple(f"A{k}" for k in range(n) if k % 2 == n % 2)
        assert {*i.candidates} == {f"A{n}"} | {f"A{k}" for k in range(n) if k % 2 != n % 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("u\tyesterday\tA1\t1\t1", "is no time"),
        ("u\t1\tA-1\t1\t1", "hyphen"),
        ("u\t1\tA1\t2\t1", "not 0 or 1"),
        ("u\t1\tA1", "3 columns instead of 5"),
        ("\t1\tA1\t1\t1", "user is empty"),
    ],
)
def test_bad_events_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        prepare(str(events(tmp_path, f"u\t1\tA1\t1\t1\n{row}\n")), tmp_path / "out")
    assert "events.tsv:3: " in str(error.value) and message in str(error.value)
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column time, article"):
        prepare(str(events(tmp_path, "", "user\twhen")), tmp_path / "out")


# -- preparation ------------------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for name, text in members.items():
            held.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)  # equal members, equal bytes
    return path


def test_mind_is_fetched_checked_and_not_fetched_twice(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(url: str, target: Path) -> Path:
        asked.append(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        return archive(target, {"MIND/news.tsv": NEWS_LINE + "\n", "MIND/behaviors.tsv": LOG_LINE + "\n", "../x": "no"})

    account = prepare("MINDsmall", tmp_path / "out", fetch=fetch)
    assert account["impressions"] == {"train": 1, "dev": 1}
    assert [url.rpartition("/")[2] for url in asked] == ["MINDsmall_train.zip", "MINDsmall_dev.zip"]
    assert next(read_news(tmp_path / "out/dev/news.tsv")).id == "N1"
    stamp = (tmp_path / "out/train/news.tsv").stat().st_mtime_ns
    lines: list[str] = []
    prepare("MINDsmall", tmp_path / "out", fetch=fetch, log=lines.append)
    assert (tmp_path / "out/train/news.tsv").stat().st_mtime_ns == stamp and "already" in lines[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("members", [{}, {"news.tsv": "x"}, {"news.tsv": "x" * 10_000_000, "behaviors.tsv": "y"}])
def test_archives_that_are_not_minds(tmp_path: Path, members: dict[str, str]) -> None:
    with pytest.raises(UserError):
        prepare("MINDdemo", tmp_path / "out", fetch=lambda _, __: archive(tmp_path / "a.zip", members))
    with pytest.raises(UserError, match="damaged"):
        prepare("MINDdemo", tmp_path / "out", fetch=lambda _, __: file(tmp_path, b"PK broken", "b.zip"))
    no_text = archive(tmp_path / "c.zip", {"é": "x"}).read_bytes().replace("é".encode(), b"\xff\xff")
    with pytest.raises(UserError, match="damaged"):
        prepare("MINDdemo", tmp_path / "out", fetch=lambda _, __: file(tmp_path, no_text, "c.zip"))


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file(tmp_path, "x", "other.tsv")
    for source in ("nowhere", str(tmp_path / "empty"), str(tmp_path), "dkn:nowhere"):
        with pytest.raises(UserError):
            prepare(source, tmp_path / "out")


def test_a_folder_of_parts_is_copied_row_by_row(tmp_path: Path) -> None:
    write_part(tmp_path / "in/train", NEWS, LOG)
    write_part(tmp_path / "in/test", NEWS, [impression(1, "U1", "N1", "N1 N2", None)])
    account = prepare(str(tmp_path / "in"), tmp_path / "out", limit=3)
    assert account["impressions"] == {"train": 3, "test": 1}
    assert list(read_behaviors(tmp_path / "out/train/behaviors.tsv")) == LOG[:3]


def test_a_log_in_one_folder_is_split_by_time(tmp_path: Path) -> None:
    shuffled = [LOG[i % len(LOG)] for i in range(10)]
    log = [replace(shuffled[i], time=datetime(2026, 1, 1 + (7 * i) % 10)) for i in range(10)]
    write_part(tmp_path / "in", NEWS, log)
    account = prepare(str(tmp_path / "in"), tmp_path / "out")
    assert account["impressions"] == {"train": 8, "dev": 2}
    train, dev = (list(read_behaviors(tmp_path / "out" / part / "behaviors.tsv")) for part in ("train", "dev"))
    assert train == [i for i in log if i.time.day < 9] and dev == [i for i in log if i.time.day >= 9]


def test_a_source_that_fails_leaves_what_was_prepared_before(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("bad", 1)):
        write_part(tmp_path / name / "train", NEWS, LOG[seed:])
        write_part(tmp_path / name / "dev", NEWS, LOG)
    with (tmp_path / "bad/dev/behaviors.tsv").open("a") as log:
        log.write("not a row\n")
    prepare(str(tmp_path / "a"), tmp_path / "out")
    held = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for out, left in (("out", held), ("new", {})):
        with pytest.raises(UserError, match="behaviors.tsv:"):
            prepare(str(tmp_path / "bad"), tmp_path / out)
        assert {path: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()} == left
    assert not (tmp_path / "new").exists()


def test_parts_of_an_earlier_source_do_not_stay(tmp_path: Path) -> None:
    write_part(tmp_path / "three/train", NEWS, LOG)
    write_part(tmp_path / "three/test", NEWS, LOG)
    write_part(tmp_path / "one/train", NEWS, LOG[:2])
    prepare(str(tmp_path / "three"), tmp_path / "out")
    prepare(str(tmp_path / "one"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prepared.json", "train"]


def test_times_with_a_zone_are_written_in_utc(tmp_path: Path) -> None:
    source = events(
        tmp_path,
        "u\t2026-01-01T23:30:00+09:00\tA1\t1\t1\nu\t2026-01-01T15:00:00\tA2\t1\t2\nu\t1767279600\tA3\t1\t3\n",
    )
    prepare(str(source), tmp_path / "out")
    written = [
        *read_behaviors(tmp_path / "out/train/behaviors.tsv"),
        *read_behaviors(tmp_path / "out/dev/behaviors.tsv"),
    ]
    assert [i.time.isoformat() for i in written] == [
        "2026-01-01T14:30:00",
        "2026-01-01T15:00:00",
        "2026-01-01T15:00:00",
    ]
    assert parse_time("2019-11-11T23:30:00+09:00", "x") == datetime(2019, 11, 11, 14, 30)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("u\t0001-01-01\tA1\t1\t1", "is no time"),
        ("u\t9999-12-31T23:59:59-10:00\tA1\t1\t1", "is no time"),
        ("u\t2026-01-01\tA\u00a01\t1\t1", "has a blank or a hyphen"),
    ],
)
def test_events_that_mind_cannot_hold_are_named(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(UserError, match=f"events.tsv:2.*{said}|{said}"):
        prepare(str(events(tmp_path, f"{row}\n")), tmp_path / "out")
