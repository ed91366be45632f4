"""Environmental wire items with planted facts: who did what, how much of it, and where. Seeded; all text is made up.

Names of places and firms are put together from syllables, so most of them are in no vocabulary and have to be copied.
The fact stands in any sentence, beside others with numbers and places of their own, so the lead is a poor summary.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import NamedTuple

from seq2seq_keras.data.types import Example


def _list(words: str) -> list[str]:
    return words.split()


_HEADS = _list("al bar cor dun el fen gar hol is jor kel lin mor nor os pel quin ros sel tor ul ven wes yar zel")
_MIDDLES = [*_list("a e i o u an en er il or am es ar in ul"), ""]
_TAILS = _list("by dale den field ford ham haven holm ley mere mouth port stad sted stone ton vik wick worth")
_FIRMS = _list("Cement Chemicals Energy Fisheries Foods Holdings Logistics Mining Paper Power Shipping Solar Steel")
_BODIES = _list("council harbour-board water-authority forest-agency port-authority farmers-union")


class Event(NamedTuple):
    """One kind of news: sentences that tell it, and the summary they call for."""

    told: tuple[str, ...]
    summary: str
    low: int
    high: int


_EVENTS = (
    Event(
        (
            "Regulators fined {who} {n} million dollars over a chemical spill near {where}, court papers show.",
            "A court ordered {who} to pay a fine of {n} million dollars for spilling chemicals near {where}.",
        ),
        "{who} fined {n} million dollars over spill near {where}",
        2,
        400,
    ),
    Event(
        (
            "{who} will plant {n} thousand trees around {where} before next winter, it announced.",
            "Some {n} thousand trees are to be planted around {where} by {who}, according to a plan seen this week.",
        ),
        "{who} to plant {n} thousand trees around {where}",
        3,
        900,
    ),
    Event(
        (
            "{who} said it would close its coal plant at {where}, with the loss of {n} jobs.",
            "The coal plant at {where} is to be closed by {who}, and {n} people will lose their jobs.",
        ),
        "{who} to close coal plant at {where} with loss of {n} jobs",
        40,
        2_900,
    ),
    Event(
        (
            "{who} opened a wind farm of {n} megawatts off {where} on Tuesday.",
            "A wind farm with a capacity of {n} megawatts was opened off {where} by {who}.",
        ),
        "{who} opens {n} megawatt wind farm off {where}",
        20,
        1_400,
    ),
    Event(
        (
            "Floods drove {n} people from their homes in {where}, {who} said.",
            "According to {who}, {n} people had to leave their homes in {where} when the river rose.",
        ),
        "floods drive {n} people from homes in {where}",
        120,
        9_800,
    ),
    Event(
        (
            "{who} recalled {n} tonnes of fertiliser after tests at {where} found heavy metals.",
            "After heavy metals were found in tests at {where}, {who} is calling back {n} tonnes of fertiliser.",
        ),
        "{who} recalls {n} tonnes of fertiliser after tests at {where}",
        15,
        990,
    ),
    Event(
        (
            "{who} agreed to cut its emissions at {where} by {n} percent within a decade.",
            "Emissions at {where} are to fall by {n} percent within ten years, {who} promised.",
        ),
        "{who} to cut emissions at {where} by {n} percent",
        5,
        95,
    ),
    Event(
        (
            "Wildfire burned {n} hectares of forest close to {where} before crews of {who} stopped it.",
            "Crews of {who} stopped a wildfire close to {where} that had burned {n} hectares of forest.",
        ),
        "wildfire burns {n} hectares of forest close to {where}",
        30,
        8_700,
    ),
    Event(
        (
            "{who} has banned fishing for {n} weeks in the waters of {where} to let cod stocks recover.",
            "To let cod stocks recover, fishing in the waters of {where} is banned for {n} weeks, {who} ruled.",
        ),
        "{who} bans fishing in waters of {where} for {n} weeks",
        2,
        48,
    ),
    Event(
        (
            "{who} will spend {n} million dollars on a dam above {where}.",
            "A dam above {where} will be built by {who} for {n} million dollars.",
        ),
        "{who} to build {n} million dollar dam above {where}",
        4,
        950,
    ),
    Event(
        (
            "Smog over {where} sent {n} people to hospital, doctors told {who}.",
            "Doctors told {who} that {n} people went to hospital because of the smog over {where}.",
        ),
        "smog over {where} sends {n} people to hospital",
        12,
        1_900,
    ),
    Event(
        (
            "{who} found traces of mercury in {n} wells around {where}.",
            "In {n} wells around {where}, {who} has found traces of mercury.",
        ),
        "mercury found in {n} wells around {where}",
        3,
        240,
    ),
)

_ASIDES = (
    "The announcement came at the end of a long and unusually warm week in the region.",
    "Residents had asked for clear answers since the spring, and some of them were not satisfied.",
    "A spokesman declined to comment on what the decision would mean for neighbouring {place}.",
    "Last year {m} complaints were filed in {place}, most of them by the same few families.",
    "Scientists from the institute in {place} said that the trend had been visible for {m} years.",
    "The weather service expects dry days with light winds for the rest of the month.",
    "Campaigners gathered outside the town hall of {place} with banners and drums.",
    "Shares of the sector fell slightly in early trading and recovered in the afternoon.",
    "An earlier plan had been dropped after {m} experts warned of its cost.",
    "Officials will meet again in {place} next month to look at the first results.",
    "Nobody was hurt, and the road to {place} was open again by the evening.",
    "The minister praised the work of volunteers and promised a full report.",
    "It is not yet known who will pay for the repairs, which may take {m} months.",
    "Similar measures were taken in {place} two years ago, with mixed results.",
    "Environment groups called the step overdue, while business leaders asked for more time.",
    "Local radio had reported on the matter for days before it became official.",
)


def generate(count: int, seed: int = 0) -> list[Example]:
    """Make ``count`` items; the same seed gives the same items, and a longer list begins with the shorter one."""
    rng = random.Random(f"wire items {seed}")
    start = datetime(2020, 1, 1)
    return [_item(rng, f"item-{seed}-{i:06d}", start + timedelta(minutes=17 * i)) for i in range(count)]


def _item(rng: random.Random, name: str, date: datetime) -> Example:
    event = rng.choice(_EVENTS)
    facts = {"who": _who(rng), "where": _place(rng), "n": f"{rng.randint(event.low, event.high):,}"}
    asides = [
        text.format(place=_place(rng), m=rng.randint(2, 90)) for text in rng.sample(_ASIDES, rng.choice((2, 2, 3)))
    ]
    # Mostly behind the opening, as in an item that begins with the scene.
    at = rng.choice((0, 1, 1, 1, 2, 2))
    sentences = [*asides[:at], rng.choice(event.told).format(**facts), *asides[at:]]
    text = " ".join(s[0].upper() + s[1:] for s in sentences)
    return Example(id=name, text=text, summary=event.summary.format(**facts), date=date.isoformat())


def _place(rng: random.Random) -> str:
    return f"{_name(rng)}{rng.choice(_TAILS)}"


def _name(rng: random.Random) -> str:
    return (rng.choice(_HEADS) + rng.choice(_MIDDLES) + rng.choice(_HEADS)).capitalize()


def _who(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return f"{_name(rng)}{rng.choice(_MIDDLES)} {rng.choice(_FIRMS)}"
    return f"the {_place(rng)} {rng.choice(_BODIES).replace('-', ' ')}"
