"""The one object that answers, `Recommender`, and the catalogue it answers from."""

from nrms.inference.answer import Answer, Item, Reason
from nrms.inference.catalogue import Catalogue, Filter
from nrms.inference.recommender import Recommender

__all__ = ["Answer", "Catalogue", "Filter", "Item", "Reason", "Recommender"]
