"""Structured logs, and metrics that count over all worker processes."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Gauge

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """One JSON object per line; what a call gives as ``extra`` becomes keys."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": record.process,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(level: int = logging.INFO) -> None:
    """Send the logs of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("nrms").setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [], True


class Metrics:
    """What is counted. Several workers write to files in PROMETHEUS_MULTIPROC_DIR, and any of them can sum up."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._several = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self.registry = own = CollectorRegistry()
        self.requests = Counter("nrms_requests", "Answered requests.", ["route", "status"], registry=own)
        buckets = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
        self.seconds = Histogram("nrms_request_seconds", "Time to answer.", ["route"], buckets=buckets, registry=own)
        self.events = Counter("nrms_events", "Reads committed for the first time.", registry=own)
        self.fallbacks = Counter("nrms_fallbacks", "Answers without a known history.", ["kind"], registry=own)
        self.missing = Counter("nrms_missing_articles", "Ids of requests that are not in the catalogue.", registry=own)
        self.articles = self._gauge("nrms_articles", "Articles that can be recommended.")
        self.swapped = self._gauge("nrms_swapped_timestamp_seconds", "When model or matrix were exchanged.")
        self.model = self._gauge("nrms_model_active", "1 for the model that answers.", "model_id")
        self._model_id = ""

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        from prometheus_client import Gauge

        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode="livemostrecent")

    def swap(self, model_id: str, articles: int) -> None:
        """Note what answers now."""
        if self._model_id and self._model_id != model_id:
            self.model.labels(self._model_id).set(0)
        self._model_id = model_id
        self.model.labels(model_id).set(1)
        self.articles.set(articles)
        self.swapped.set(time.time())

    def page(self) -> tuple[bytes, str]:
        """The page that Prometheus reads, and its type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self.registry
        if self._several:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
