"""Merges the metrics of several engines into one text, with the label `engine`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

LABEL = "engine"


class _Merged:
    """A Prometheus collector of the metric families of all texts."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for engine, text in self._texts.items():
            for family in _families(text):
                known = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {LABEL: engine, **sample.labels}
                    known.add_sample(sample.name, labels, sample.value)
        return families.values()


def merged(texts: Mapping[str, str]) -> bytes:
    """`texts`: metrics by engine name. A sample that has the label `engine` keeps it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(texts))
    return generate_latest(registry)


def _families(text: str) -> Iterator[Metric]:
    yield from text_string_to_metric_families(text)
