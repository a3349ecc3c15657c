"""One's own house: alerts, logs and spans of OpenTelemetry, Prometheus, Kubernetes events and deploys, joined."""

from verl_aiops.investigation.importers.house.read import HOUSE

__all__ = ["HOUSE"]
