"""Counters and histograms for the call's path, a tenth of the price of those of prometheus_client."""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Registry(CollectorRegistry):
    """A registry for these.

    Attributes:
        catch_up: counts what is yet to be counted; it is called before a family tells anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.catch_up: Callable[[], None] = lambda: None


class Count:
    """One series of a counter. It belongs to the event loop: no lock guards it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count."""
        self.value += amount


class Spread:
    """One series of a histogram. It belongs to the event loop: no lock guards it.

    Args:
        bounds: the upper bounds of the buckets, rising; what is above them all has a bucket of its own.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in its bucket."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


Series = TypeVar("Series", Count, Spread)


class Family(Collector, ABC, Generic[Series]):
    """The series of one metric, by the values of their labels, which must be few; without labels there is one."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, registry: Registry) -> None:
        self._name, self._help, self.label_names = name, help, tuple(labels)
        self._series: dict[tuple[str, ...], Series] = {}
        self._registry = registry
        registry.register(self)

    @abstractmethod
    def _new(self) -> Series:
        """A series that has counted nothing."""

    @abstractmethod
    def _metric(self) -> Metric:
        """The metric with its samples."""

    def collect(self) -> Iterator[Metric]:
        """The metric with its samples."""
        self._registry.catch_up()
        yield self._metric()

    def describe(self) -> Iterator[Metric]:
        """The metric, for the registry to know its name."""
        yield self._metric()

    def labels(self, *values: str) -> Series:
        """The series with these values of the labels."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self._name} has the labels {self.label_names}, not {values}")
            series = self._series[values] = self._new()
        return series

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The values of the labels of each series."""
        return iter(list(self._series))

    def remove(self, *values: str) -> None:
        """Let go of a series."""
        del self._series[values]


class CounterFamily(Family[Count]):
    """A counter.

    Attributes:
        inc: counts in a family without labels.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, registry: Registry) -> None:
        super().__init__(name, help, labels, registry=registry)
        if not labels:
            self.inc = self.labels().inc

    def _new(self) -> Count:
        return Count()

    def _metric(self) -> Metric:
        metric = CounterMetricFamily(self._name, self._help, labels=self.label_names)
        for values, series in self._series.items():
            metric.add_metric(values, series.value)
        return metric


class HistogramFamily(Family[Spread]):
    """A histogram.

    Args:
        buckets: see `Spread`.

    Attributes:
        observe: counts a value in a family without labels.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, buckets: Sequence[float], registry: Registry) -> None:
        self._bounds = tuple(map(float, buckets))
        super().__init__(name, help, labels, registry=registry)
        if not labels:
            self.observe = self.labels().observe

    def _new(self) -> Spread:
        return Spread(self._bounds)

    def _metric(self) -> Metric:
        metric = HistogramMetricFamily(self._name, self._help, labels=self.label_names)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, series in self._series.items():
            upto = 0.0
            buckets = [(name, upto := upto + count) for name, count in zip(names, series.counts, strict=True)]
            metric.add_metric(values, buckets, series.sum)
        return metric
