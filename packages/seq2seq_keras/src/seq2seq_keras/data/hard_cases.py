"""Sentences that are hard to split, with where they should be cut (marked by ``|``)."""

from __future__ import annotations

from seq2seq_keras.data.text import make_splitter

HARD_CASES = (
    "Dr. Ahn arrived at 9 a.m. on Monday.| He left early.",
    "The U.S. Senate voted 51.5 to 48.5 percent.| Nobody spoke.",
    "Mr. and Mrs. Osei own 3.5 acres.| Prof. Lind owns none.",
    "“Is it over?” he asked.| It was.",
    "It cost $4.99 vs. $5.10 last year.| Prices fell.",
    "See Fig. 3 for details.| Table 2 shows the rest.",
    "They met J. R. Hale in St. Louis.| He was late.",
    "Wait... there is more.| Not much.",
    "The firm, Nordal Inc., grew.| So did Velt Corp. in Maine.",
    "Who said so?| No one!| Really.",
    "Gov. Mann and Sen. Dietz agreed.| Rep. Fox did not.",
    "He paid approx. 20 percent, i.e. a fifth.| That was all.",
    "(The plant closed in May.)| Workers left.",
    "Emissions fell, e.g. in ports.| Fleets shrank too.",
    "It rained on Jan. 4 and Feb. 9.| Then it stopped.",
    "the ice is melting.| scientists say so.| it is warm.",
    "it rose 1.5 degrees.| mr. hale was surprised.",
    "what can we do?| we can plant trees.| now!",
    "the u.s. signed it.| others followed.",
    "“We are done,” she said.| “Go home.”",
)


def splitter_accuracy(name: str = "auto") -> str:
    """How many of the hard cases a splitter cuts in the right places, as in "18 of 20"."""
    split = make_splitter(name)
    right = sum(
        [s.strip() for s in split(case.replace("|", ""))] == [s.strip() for s in case.split("|")] for case in HARD_CASES
    )
    return f"{right} of {len(HARD_CASES)}"
