"""The store, on both databases: what is written once, what is locked, what a reader sees."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from factory import make_news
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentlab_shared.errors import UserError
from nrms.data.types import News
from nrms.inference.catalogue import Filter, to_ms, to_time
from nrms.server.store import NoDatabase, Read, Store, Unavailable
from nrms.server.store.database import Database, alembic_config, now_ms
from nrms.server.store.schema import articles, embeddings, jobs, metadata


def vectors_of(news: list[News], dim: int = 8) -> np.ndarray:
    """A vector that the title decides."""
    return np.stack([np.random.default_rng(sum(map(ord, n.title))).standard_normal(dim) for n in news]).astype("f4")


@pytest.fixture
def store(database: str):
    made = Store(database)
    yield made
    made.close()


def embed_all(store: Store, model, size: int = 7, encode=vectors_of) -> int:
    job = store.embeddings.start(model)
    while store.embeddings.embed_batch(job, size, encode):
        pass
    store.embeddings.finish(job)
    return job.done


def test_migrations_make_what_the_tables_say_and_can_be_undone(store: Store) -> None:
    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.database.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": False})
        assert compare_metadata(context, metadata) == []
    store.database.migrate()  # nothing to do the second time
    config = alembic_config()
    with store.database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with store.database.read() as connection:
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    store.database.migrate()
    assert store.articles.add(make_news(2)).inserted == 2


def test_many_processes_may_migrate_at_once(database: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: Store(database), range(6)))
    assert [s.articles.count() for s in stores] == [0] * 6
    for made in stores:
        made.close()


def test_a_database_of_a_newer_version_is_refused(store: Store, database: str) -> None:
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match=r"another version.*Update the package"):
        Store(database)


def test_articles_are_added_once_and_changed_when_they_change(store: Store) -> None:
    news = make_news(5)
    assert vars(store.articles.add([*news, news[0]])) == {"inserted": 5, "updated": 0, "unchanged": 0}
    changed = replace(news[1], title="other words"), replace(news[2], category="else")
    assert vars(store.articles.add([news[0], *changed, News("new", "x")])) == {
        "inserted": 1,
        "updated": 2,
        "unchanged": 1,
    }
    assert store.articles.get(["N1", "nothing", "N0"]) == {"N0": news[0], "N1": changed[0]}
    assert store.articles.count() == 6
    yesterday = datetime.now(UTC) - timedelta(days=1)
    store.articles.add([news[3]], {"N3": yesterday})
    assert store.articles.count() == 5
    assert "N3" not in {n.id for n in store.articles.search(limit=100)}


def test_articles_are_found_by_words_and_category(store: Store) -> None:
    store.articles.add([News("a", "Cup 50% off", "x"), News("b", "cup_final", "y"), News("c", "CUP final", "x")])
    assert {n.id for n in store.articles.search("cup")} == {"a", "b", "c"}
    assert [n.id for n in store.articles.search("Final cup", "x")] == ["c"]
    assert [n.id for n in store.articles.search("50%")] == ["a"]  # signs of LIKE are plain signs
    assert [n.id for n in store.articles.search("p_f")] == ["b"]
    assert store.articles.categories() == ["x", "y"]


def test_words_are_found_in_either_case_in_every_script(store: Store) -> None:
    store.articles.add([News("a", "Élan Über"), News("b", "ÉLAN ΣΟΦΙΑ"), News("c", "elan")])
    assert {n.id for n in store.articles.search("Élan")} == {n.id for n in store.articles.search("élan")} == {"a", "b"}
    assert [n.id for n in store.articles.search("über")] == ["a"]


def test_times_outside_the_calendar_are_refused_and_do_no_harm_where_they_are_stored(store: Store) -> None:
    far = timezone(timedelta(hours=14))
    early, late = datetime.min.replace(tzinfo=far), datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))
    for moment in (early, late):
        with pytest.raises(UserError, match="years 1 to 9999"):
            store.articles.add([News("a", "t", published=moment)])
    with pytest.raises(UserError, match="years 1 to 9999"):
        store.articles.add([News("a", "t")], {"a": late})
    assert store.articles.count() == 0
    ends = [News("first", "t", published=datetime.min), News("last", "t", published=datetime.max)]
    store.articles.add(ends)
    with store.database.write() as connection:  # as an earlier version wrote them
        for id, moment in (("first", -62135647200000), ("last", 253402300800000)):
            connection.execute(sa.update(articles).where(articles.c.id == id).values(published_at=moment))
    found = {n.id: n.published for n in store.articles.search()}
    assert (found["first"].year, found["last"].year) == (1, 9999)
    assert embed_all(store, store.models.register("m", 8, "f")) == 2


@settings(max_examples=200, deadline=None)
@given(st.datetimes(timezones=st.timezones()))
def test_every_time_of_the_calendar_keeps_its_milliseconds(moment: datetime) -> None:
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        with pytest.raises(UserError):
            to_ms(moment)
        return
    assert to_time(to_ms(moment)) == utc.replace(microsecond=utc.microsecond // 1000 * 1000)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uv"), st.integers(0, 9)), max_size=30))
def test_events_count_once_whatever_is_sent(tmp_path: Path, sent: list[tuple[str, str, int]]) -> None:
    store = Store(f"sqlite:///{tmp_path / f'{hash(tuple(sent))}.db'}")
    before: dict[str, Read] = {}
    held = store.events.count()
    for id, user, at in sent:
        fresh = store.events.add([Read(id, user, f"N{at}", at)] * 2)
        assert fresh == (id not in before and held == 0)
        before.setdefault(id, Read(id, user, f"N{at}", at))
    if held == 0:
        assert store.events.count() == len(before)
        for user in "uv":
            mine = sorted((r for r in before.values() if r.user == user), key=lambda r: (r.at, r.event_id))
            last = dict.fromkeys(r.article for r in reversed(mine))
            assert store.events.history(user) == list(last)[::-1]
    store.close()


def test_events_are_the_same_on_both(store: Store) -> None:
    reads = [Read("1", "u", "A", 10), Read("2", "u", "B", 20), Read("3", "u", "A", 30), Read("4", "v", "B", 5)]
    assert (store.events.add(reads), store.events.add(reads), store.events.add([])) == (4, 0, 0)
    assert store.events.history("u") == ["B", "A"] and store.events.history("nobody") == []
    assert store.events.popular(0) == ["B", "A"]  # B has two readers
    assert store.events.popular(25) == ["A"]


def test_a_history_counts_articles_not_reads(store: Store) -> None:
    store.events.add([Read("first", "u", "N7", 1), *(Read(f"u{i}", "u", "N9", 2 + i) for i in range(1000))])
    assert store.events.history("u") == ["N7", "N9"] and store.events.history("u", limit=1) == ["N9"]
    store.events.add([Read(f"v{i}", "v", f"N{i}", i) for i in range(1500)])
    assert store.events.history("v") == [f"N{i}" for i in range(1500)]


def test_only_what_is_new_or_has_another_text_is_embedded(store: Store) -> None:
    news = make_news(20)
    store.articles.add(news)
    model = store.models.register("m1", 8, "folder")
    assert embed_all(store, model) == 20
    assert embed_all(store, model) == 0
    store.articles.add(
        [replace(news[4], title="fresh title"), replace(news[5], published=None), *make_news(2, start=20)]
    )
    assert store.models.coverage(model).embedded == 19  # one stale, two new
    seen: list[str] = []

    def encode(given: list[News]) -> np.ndarray:
        seen.extend(n.id for n in given)
        return vectors_of(given)

    assert embed_all(store, model, encode=encode) == 3
    assert sorted(seen) == ["N20", "N21", "N4"]
    other = store.models.register("m2", 8, "folder2")
    assert embed_all(store, other) == 22
    with store.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(embeddings)).scalar_one() == 44
    held = store.embeddings.get(model, ["N4"])["N4"][1]
    assert np.array_equal(held, vectors_of([News("", "fresh title")])[0].astype(np.float16))


def test_concurrent_workers_take_different_rows(database: str) -> None:
    store = Store(database)
    store.articles.add(make_news(300))
    model = store.models.register("m", 8, "folder")
    taken: list[str] = []
    guard, gate = threading.Lock(), threading.Barrier(4)

    def work(_: int) -> int:
        mine = Store(database)
        first = True

        def encode(news: list[News]) -> np.ndarray:
            nonlocal first
            with guard:
                taken.extend(n.id for n in news)
            if first:
                first = False
                gate.wait(timeout=30)  # all four hold a batch at the same time
            return vectors_of(news)

        done = embed_all(mine, model, 20, encode)
        mine.close()
        return done

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(work, range(4)))
    assert sum(done) == 300 and min(done) > 0
    assert len(taken) == 300 == len(set(taken))
    with store.database.read() as connection:
        assert connection.execute(sa.select(sa.func.sum(jobs.c.done))).scalar_one() == 300
    store.close()


def test_the_rows_of_a_dead_worker_are_taken_by_the_next(store: Store) -> None:
    """A batch that fails leaves no trace, and a lease of a process that is gone does not count."""
    store.articles.add(make_news(30))
    model = store.models.register("m", 8, "folder")
    job = store.embeddings.start(model)

    def fail(_: list[News]) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.embeddings.embed_batch(job, 10, fail)
    with store.database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(low=1, high=10))  # as a kill leaves it
    with store.database.write() as connection:  # the process of this job was on this machine and is no more
        own = connection.execute(sa.select(jobs.c.worker).where(jobs.c.id == job.id)).scalar_one()
        host = own.split(":")[0]
        connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(worker=f"{host}:999999999:gone"))
    assert embed_all(store, model) == 30
    with store.database.read() as connection:
        states = dict(connection.execute(sa.select(jobs.c.id, jobs.c.state)).all())
    assert states[job.id] == "failed" and sorted(states.values()) == ["done", "failed"]


def test_bad_vectors_are_refused(store: Store) -> None:
    store.articles.add(make_news(3))
    model = store.models.register("m", 8, "folder")
    for bad, said in ((np.full((3, 8), np.nan), "not finite"), (np.full((3, 8), 1e6), "half precision")):
        with pytest.raises(UserError, match=said):
            embed_all(store, model, encode=lambda _, bad=bad: bad.astype("f4"))
    with pytest.raises(ValueError, match="shape"):
        embed_all(store, model, encode=lambda news: np.zeros((len(news), 9), "f4"))
    assert store.models.coverage(model).embedded == 0


def test_a_model_answers_only_when_it_covers_the_catalogue(store: Store) -> None:
    store.articles.add(make_news(10))
    one, two = store.models.register("aaa1", 8, "f1"), store.models.register("aab2", 8, "f2")
    embed_all(store, one)
    assert store.models.active() is None
    assert store.models.activate("aaa").id == "aaa1"
    with pytest.raises(UserError, match=r"covers 0 of 10.*nrms embed --model f2"):
        store.models.activate("aab2")
    assert store.models.active() == replace(one, state="active")
    assert store.models.activate("aab2", min_coverage=0.0).state == "active"
    assert [m.state for m in store.models.all()] == ["retired", "active"]
    with pytest.raises(UserError, match="several models"):
        store.models.get("aa")
    with pytest.raises(UserError, match="no such model"):
        store.models.get("zz")
    with pytest.raises(UserError, match="is active"):
        store.models.drop("aab2")
    store.models.drop("aaa1")
    assert [m.id for m in store.models.all()] == [two.id]
    assert store.models.register("aab2", 8, "moved").state == "active"


def test_the_database_refuses_two_active_models(store: Store) -> None:
    store.models.register("a", 8, "f")
    store.models.register("b", 8, "f")
    with pytest.raises(sa.exc.IntegrityError), store.database.write() as connection:
        connection.exec_driver_sql("UPDATE models SET state = 'active'")


def test_changes_are_what_a_full_read_would_give(store: Store) -> None:
    """A follower that only reads changes holds the same as one that reads everything."""
    rng = np.random.default_rng(0)
    model = store.models.register("m", 8, "f")
    held: dict[str, tuple] = {}
    revision = -1
    for step in range(6):
        store.articles.add(make_news(5, seed=step, start=int(rng.integers(0, 12))))
        if step % 2:
            embed_all(store, model)
        changes = store.embeddings.changes(model, revision)
        assert len(changes.rows) < 20 and changes.vectors.shape == (len(changes.rows), 8)
        revision = changes.revision
        held.update({r[1]: (r, v.tobytes()) for r, v in zip(changes.rows, changes.vectors, strict=True)})
    full = store.embeddings.changes(model)
    assert {r[1]: (r, v.tobytes()) for r, v in zip(full.rows, full.vectors, strict=True)} == held
    assert full.revision <= store.embeddings.revision()
    for row, vector in zip(full.rows, full.vectors, strict=True):
        assert np.array_equal(vector, vectors_of([News("", row[2])])[0].astype("f2"))


def test_put_takes_vectors_from_elsewhere(store: Store) -> None:
    store.articles.add(make_news(4))
    model = store.models.register("m", 8, "f")
    given = np.arange(24, dtype="f4").reshape(3, 8)
    assert store.embeddings.put(model, ["N2", "unknown", "N0"], given) == 2
    assert store.embeddings.get(model, ["N0"])["N0"][1].tolist() == given[2].tolist()
    assert embed_all(store, model) == 2


@pytest.mark.parametrize("exact", [True, False], ids=["scan", "hnsw"])
def test_search_in_postgres_gives_what_numpy_gives(empty_postgres: str, exact: bool) -> None:
    store = Store(empty_postgres)
    news = make_news(400)
    store.articles.add(news, {"N7": datetime(2020, 1, 1, tzinfo=UTC)})
    model, other = store.models.register("m", 8, "f"), store.models.register("o", 8, "f")
    for each in (model, other):
        embed_all(store, each, 100, vectors_of if each is model else lambda n: -vectors_of(n))
        store.embeddings.build_index(each)
    matrix = vectors_of(news).astype("f2").astype("f4")
    query = np.random.default_rng(5).standard_normal(8).astype("f4")
    since = now_ms() - 10**12
    for wanted in (Filter(), Filter(("music",), None, frozenset({"N1", "N4"})), Filter((), since)):
        allowed = [
            i
            for i, n in enumerate(news)
            if n.id not in wanted.exclude | {"N7"} and (not wanted.categories or n.category in wanted.categories)
        ]
        best = sorted(allowed, key=lambda i: -float(matrix[i] @ query.astype("f2").astype("f4")))[:10]
        hits = store.embeddings.nearest(model, query, 10, wanted, exact)
        found = [row[1] for row in hits.rows]
        shared = len(set(found) & {news[i].id for i in best})
        assert shared == 10 if exact else shared >= 9
        assert np.allclose(hits.scores, hits.vectors.astype("f4") @ query, atol=2e-2)
    newest = store.embeddings.newest(model, 3, Filter(exclude=frozenset({"N399"})))
    assert [row[1] for row in newest] == ["N398", "N397", "N396"]
    with store.database.read() as connection:
        if not exact:  # a larger table would be asked through the graph
            connection.exec_driver_sql("SET LOCAL enable_sort = off")  # a table this small is faster sorted
            plan = connection.exec_driver_sql(
                f"EXPLAIN SELECT article FROM embeddings e WHERE e.model = {model.number}"
                f" ORDER BY e.vector::halfvec(8) <#> '[1,2,3,4,5,6,7,8]' LIMIT 5"
            ).scalars()
            assert "ix_embeddings_hnsw" in " ".join(plan)
    store.close()


def test_wrong_addresses_and_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    for url, said in (
        ("sqlite://", "in memory"),
        ("mysql://x/y", "not supported"),
        (f"sqlite:///{tmp_path / 'text.db'}", "no SQLite database"),
        (f"sqlite:///{tmp_path}", "this is a folder"),
        ("postgresql://u:secret@h:bad/db", "no database address"),
        ("postgresql://127.0.0.1:1/db?nonsense=1", "nonsense"),
    ):
        with pytest.raises(UserError, match=said):
            Store(url)


def test_a_password_is_not_shown() -> None:
    for url in ("postgresql://me:secret@localhost/x", "postgresql://localhost/x?user=me&password=secret"):
        name = Database(url).name
        assert "secret" not in name and "me" in name and "localhost/x" in name


def test_who_only_reads_makes_no_database(tmp_path: Path, empty_postgres: str) -> None:
    for url in (str(tmp_path / "no" / "x.db"), f"pgserver:{tmp_path / 'pg'}"):
        with pytest.raises(NoDatabase, match=r"no such database.*Check --database"):
            Store(url, create=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    for url in (str(tmp_path / "empty.db"), empty_postgres):
        with pytest.raises(NoDatabase, match="holds nothing of nrms"):
            Store(url, create=False)
    Store(str(tmp_path / "no" / "x.db")).close()
    Store(str(tmp_path / "no" / "x.db"), create=False).close()


def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path, empty_postgres: str) -> None:
    import sqlite3

    file = tmp_path / "other.db"
    for table in ("customers", "articles", "alembic_version"):
        file.unlink(missing_ok=True)
        other = sqlite3.connect(file)
        other.execute(f"CREATE TABLE {table} (version_num TEXT)")
        if table == "alembic_version":  # another program with migrations, and by chance with this number
            other.execute("INSERT INTO alembic_version VALUES ('0001')")
        other.commit()
        other.close()
        before = file.read_bytes()
        with pytest.raises(UserError, match="another program's"):
            Store(str(file))
        assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    with Database(empty_postgres).write() as connection:
        connection.exec_driver_sql("CREATE TABLE spatial_ref_sys (a int)")  # of an extension: in nobody's way
    Store(empty_postgres).close()


def test_in_postgres_a_table_in_the_way_is_one_line(empty_postgres: str) -> None:
    with Database(empty_postgres).write() as connection:
        connection.exec_driver_sql("CREATE TABLE articles (a int)")
    with pytest.raises(UserError, match=r"another program's \(it has the table articles\)"):
        Store(empty_postgres)


def test_a_file_taken_away_is_noticed_and_not_made_anew(tmp_path: Path) -> None:
    file, aside = tmp_path / "x.db", tmp_path / "aside.db"
    store = Store(str(file), patience=0.1)
    assert store.events.add([Read("1", "u", "A", 1)]) == 1
    file.rename(aside)
    for _ in range(2):
        with pytest.raises(Unavailable):
            store.events.add([Read("2", "u", "B", 2)])
        with pytest.raises(Unavailable):
            store.events.count()
    assert not file.exists()
    aside.rename(file)
    assert store.events.add([Read("2", "u", "B", 2)]) == 1 and store.events.history("u") == ["A", "B"]
    for part in tmp_path.glob("x.db*"):
        part.unlink()
    file.touch()  # a file, but not yet a database
    with pytest.raises(Unavailable):
        store.events.add([Read("3", "u", "C", 3)])
    Store(str(file)).close()  # another database in its place: what is accepted now is kept there
    assert store.events.add([Read("3", "u", "C", 3)]) == 1
    again = Store(str(file))
    assert store.events.history("u") == again.events.history("u") == ["C"]
    again.close()
    with pytest.raises(Unavailable, match="taken away"), store.database.write():
        file.rename(aside)  # in the middle of a transaction
    store.close()


def test_a_writer_waits_as_long_as_the_store_is_patient(tmp_path: Path) -> None:
    for patience, ms in ((10.0, 10_000), (0.25, 250)):
        store = Store(str(tmp_path / "x.db"), patience=patience)
        with store.database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == ms
        store.close()


def test_articles_in_the_table_have_one_row_each(store: Store) -> None:
    def add(seed: int) -> None:
        store.articles.add(make_news(50, seed=seed % 2))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    with store.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(articles)).scalar_one() == 50
