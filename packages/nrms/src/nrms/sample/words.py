"""The words of the generated newspaper: 8 topics of 3 themes, words of no topic, and made-up names."""

from __future__ import annotations

import numpy as np

_WORDS = """
politics election: ballot candidate campaign voters primary debate poll turnout landslide runoff endorsement rally
politics congress: senate bill lawmakers veto committee hearing filibuster amendment caucus shutdown subpoena whip
politics diplomacy: treaty embassy summit sanctions envoy ceasefire ambassador alliance talks accord minister border
sports football: quarterback touchdown fumble playoff receiver linebacker kickoff yardage huddle interception blitz punt
sports tennis: serve backhand racket volley deuce baseline grandslam tiebreak umpire clay topspin seed
sports cycling: peloton sprint stage climb breakaway jersey saddle helmet descent velodrome puncture yellow
finance markets: stocks shares rally index bonds dividend selloff futures traders yield earnings broker
finance banking: loan mortgage lender deposit branch credit overdraft savings teller interest default vault
finance startups: founder funding valuation investor pitch unicorn incubator equity prototype accelerator angel round
health nutrition: vitamin protein diet calories fiber sugar cholesterol breakfast snack vegetarian portion salt
health medicine: vaccine surgeon clinic patient therapy dosage nurse diagnosis antibiotic symptom transplant ward
health fitness: workout treadmill stretching muscle cardio yoga gym squat endurance trainer pushup marathon
travel beaches: sand resort island snorkel lagoon surf palm cruise sunset coral hammock tide
travel cities: museum skyline subway plaza cathedral tourist boulevard rooftop landmark tram hostel market
travel mountains: trail summit ski glacier cabin hiking avalanche lift ridge valley backpack alpine
food baking: dough oven flour bread cake butter pastry yeast cookie frosting crust cinnamon
food dining: chef restaurant menu waiter dessert bistro reservation tasting michelin brunch sommelier kitchen
food grilling: barbecue smoke ribs charcoal marinade brisket burger skewer sauce steak coals rub
science space: rocket orbit telescope planet asteroid astronaut launch galaxy lunar satellite comet probe
science climate: emissions glacier drought carbon warming flood wildfire methane temperature renewable storm coastline
science biology: genome cell species fossil enzyme evolution microscope protein bacteria habitat mutation embryo
culture film: director actor premiere sequel screenplay studio trailer oscar thriller casting blockbuster camera
culture music: album concert guitar singer tour lyrics drummer vinyl chorus festival band melody
culture books: novel author publisher chapter memoir poet bestseller library manuscript critic plot paperback
"""

# (topic, theme, words); some words belong to two themes, as in life.
THEMES: tuple[tuple[str, str, tuple[str, ...]], ...] = tuple(
    (head.split()[0], head.split()[1], tuple(tail.split()))
    for head, _, tail in (line.partition(":") for line in _WORDS.strip().splitlines())
)
_COMMON_WORDS = """
new first after before the of in for with from over under about how why what when who here there says said told asks
shows finds gets makes takes gives wants needs seeks plans hopes fears warns calls looks comes goes turns keeps
best worst big small old young long short high low early late great good bad more most less all some many few one two
three year week day night morning today tomorrow again still never always now then next last back down up out off
people family friends home world country city town local national report story photos video update live week's guide
"""
COMMON = tuple(_COMMON_WORDS.split())
_ONSETS = (
    "b",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "br",
    "dr",
    "gr",
    "kr",
    "st",
    "tr",
)
_ENDS = ("n", "r", "l", "s", "k", "m", "th", "nd")


def make_names(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct made-up names, such as Brasoll."""
    names: dict[str, None] = {}
    while len(names) < count:
        parts = [_ONSETS[rng.integers(len(_ONSETS))] + "aeiou"[rng.integers(5)] for _ in range(2)]
        names["".join(parts).capitalize() + _ENDS[rng.integers(len(_ENDS))]] = None
    return list(names)
