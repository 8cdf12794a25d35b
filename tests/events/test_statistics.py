"""The numbers of the delivery are told under one name each."""

from prometheus_client import CollectorRegistry

from llm_proxy.events.dispatcher import Stats
from llm_proxy.events.reading import Backlog
from llm_proxy.events.statistics import DeliveryCollector, Report, shown, total

ONE = Stats(delivered=1, failed=2, dead_letters=3, dropped=4, backlog=Backlog(5, 60), oldest_age=7.5, last_error="503")
OTHER = Stats(delivered=10, failed=20, dead_letters=30, dropped=40, backlog=Backlog(50, 600), oldest_age=2.5)


def test_a_sink_over_several_logs_is_their_sum_as_old_as_the_oldest() -> None:
    assert total([ONE, OTHER]) == Stats(11, 22, 33, 44, Backlog(55, 660), 7.5, "503")
    assert total([]) == Stats()


def test_metrics_are_made_of_the_report_when_they_are_asked_for() -> None:
    reports = [Report(lost=9, bytes=7, cap=100, sinks={"file": ONE, "lunary": OTHER})]
    registry = CollectorRegistry()
    registry.register(DeliveryCollector(lambda: reports[-1]))

    def sample(name: str, sink: str) -> float | None:
        return registry.get_sample_value(f"llm_proxy_events_{name}", {"sink": sink})

    names = ("delivered_total", "failed_total", "lost_total", "dead_letters_total", "backlog", "oldest_seconds")
    assert [sample(name, "file") for name in names] == [1, 2, 4, 3, 5, 7.5]
    assert registry.get_sample_value("llm_proxy_events_spool_bytes") == 7
    assert registry.get_sample_value("llm_proxy_events_spool_cap_bytes") == 100
    assert sample("lost_total", "spool") == 9
    reports.append(Report(sinks={"file": OTHER}))
    assert [sample(name, "file") for name in names] == [10, 20, 40, 30, 50, 2.5]
    assert sample("delivered_total", "lunary") is None


def test_the_report_is_shown_with_a_place_for_each_sink() -> None:
    found = shown(Report(last=8, synced=7, lost=2, dropped=1, sinks={"file": ONE, "lunary": OTHER}))
    assert (found["last_sequence"], found["synced_sequence"], found["lost"], found["dropped"]) == (8, 7, 2, 1)
    assert [sink["name"] for sink in found["sinks"]] == ["file", "lunary"]
    assert found["sinks"][0] == {
        "name": "file",
        "delivered": 1,
        "failed": 2,
        "dead_letters": 3,
        "dropped": 4,
        "backlog": 5,
        "backlog_bytes": 60,
        "oldest_age_seconds": 7.5,
        "last_error": "503",
    }
    assert found["sinks"][1]["last_error"] is None
