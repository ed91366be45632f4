"""The object a user holds: Summarizer."""

from rsr_net.inference.decoder import BartVectorDecoder, VectorDecoder
from rsr_net.inference.summarizer import Summarizer, SummaryIndex
from rsr_net.inference.summary import Neighbour, Read, Step, Summary

__all__ = ["BartVectorDecoder", "Neighbour", "Read", "Step", "Summarizer", "Summary", "SummaryIndex", "VectorDecoder"]
