"""Metrics of a service, in Prometheus's text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        """Starts at zero, in a registry of its own."""
        self.num_requests, self.num_images = 0, 0
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "efficientdet_requests", "Answered requests.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "efficientdet_request_seconds",
            "Time from the request headers to the end of the response.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._images = Counter("efficientdet_images", "Images processed.", registry=self._registry)
        self._batches = Histogram(
            "efficientdet_batch_images", "Images in a batch.", buckets=_SIZES, registry=self._registry
        )
        self._model = Histogram(
            "efficientdet_model_seconds",
            "Time that a batch spends in the model.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.waiting = Gauge(
            "efficientdet_waiting_images", "Images accepted but not answered yet.", registry=self._registry
        )
        self.upload_memory = Gauge(
            "efficientdet_upload_bytes", "Memory of request bodies in progress.", registry=self._registry
        )
        self.image_memory = Gauge(
            "efficientdet_image_bytes", "Memory reserved for decoded images.", registry=self._registry
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self.num_requests += 1
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Counts a batch: its images and its time in the model, s."""
        self.num_images += size
        self._images.inc(size)
        self._batches.observe(size)
        self._model.observe(seconds)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
