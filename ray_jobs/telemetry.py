"""What Prometheus can ask of a run, and of replicas that serve: gauges, which Ray exports with its own from each node.

Ray puts `ray_` before every name, so the loss is `ray_codeparrot_loss`, with the run's name as a tag.
"""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codeparrot.serving_metrics import ServingMetrics

SERVING_INTERVAL_SECONDS = 5.0

GAUGES = {
    "loss": "Mean negative log-likelihood of the last logged step, nats per token",
    "validation_loss": "The same on the validation split, at the last evaluation",
    "step": "Optimizer updates done",
    "tokens_per_second": "Tokens trained on per second, since the step logged before",
    "mfu": "Share of the measured peak of floating-point operations that is useful",
    "goodput": "Share of the wall time since the run began that made steps which count",
    "data_wait_seconds": "Seconds that training waited for data, since the step logged before",
    "checkpoint_stall_seconds": "Seconds that training waited for checkpoints, since the step logged before",
    "checkpoint_seconds": "Seconds from the snapshot to the commit of the newest checkpoint",
    "lost_work_seconds": "Seconds of steps that had to be made again, since the driver began",
    "recovery_seconds": "Seconds from the last sign of life before the newest failure to training again",
    "num_restarts": "Worker groups that were started again, since the driver began",
}


class Telemetry:
    """The gauges of one run; `observe` is told every event of the workers."""

    def __init__(self, run_name: str) -> None:
        from ray.util.metrics import Gauge

        tags = {"run_name": run_name}
        self._gauges = {
            name: Gauge(f"codeparrot_{name}", description=text, tag_keys=("run_name",)) for name, text in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags(tags)
        self._recent: list[tuple[int, float]] = []
        self._last_sign: float | None = None
        self._lost_seconds = 0.0

    def observe(self, event: Mapping[str, Any]) -> None:
        """Set the gauges that an event tells of."""
        kind = event["kind"]
        if kind == "step":
            self._recent.append((event["step"], event["seconds"]))
        elif kind == "checkpoint":
            self._recent = [(step, seconds) for step, seconds in self._recent if step > event["step"]]
            self._set("checkpoint_seconds", event["seconds"])
        elif kind == "started":
            self._set("num_restarts", event["number"] - 1)
        elif kind == "training":
            self._lost_seconds += sum(seconds for step, seconds in self._recent if step > event["step"])
            self._recent = []
            self._set("lost_work_seconds", self._lost_seconds)
            if self._last_sign is not None:
                self._set("recovery_seconds", time.monotonic() - self._last_sign)
        for name in GAUGES:
            if name in event and kind in ("step", "evaluation"):
                self._set(name, event[name])
        if kind in ("step", "training", "checkpoint"):
            self._last_sign = time.monotonic()

    def _set(self, name: str, value: float) -> None:
        self._gauges[name].set(float(value))


def export_serving(metrics: "ServingMetrics", replica: str, interval_seconds: float = SERVING_INTERVAL_SECONDS) -> None:
    """Keep Ray's figures of a replica those of its server, for as long as the process lives.

    All are gauges there, counters and buckets too, so that no request waits for Ray; Prometheus computes the same
    rates and quantiles from them.
    """
    from ray.util.metrics import Gauge

    gauges: dict[str, Gauge] = {}

    def copy() -> None:
        while True:
            for name, labels, value in metrics.samples():
                if name not in gauges:
                    gauges[name] = Gauge(name, tag_keys=("replica", *labels))
                gauges[name].set(value, tags={"replica": replica, **labels})
            time.sleep(interval_seconds)

    threading.Thread(target=copy, name="telemetry", daemon=True).start()
