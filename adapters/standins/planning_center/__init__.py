"""A runnable stand-in of Planning Center's People API: `python -m adapters.standins.planning_center --port 0 --people 5000`.

Shapes, paging, filters, quota and errors are those of API version 2025-03-20. What the real API does not have lives under
`/_standin/`: `truth`, `change`, `stats`, `settle`.
"""

from adapters.standins.planning_center.app import Standin, create_app
from adapters.standins.planning_center.churn import BadChange, Churn
from adapters.standins.planning_center.deliveries import Event, Subscriptions, events_between, signed
from adapters.standins.planning_center.faults import Fault, Faults
from adapters.standins.planning_center.gate import Credentials, Quota
from adapters.standins.planning_center.organization import Organization, Unknown
from adapters.standins.planning_center.serving import main, serve

__all__ = [
    "BadChange",
    "Churn",
    "Credentials",
    "Event",
    "Fault",
    "Faults",
    "Organization",
    "Quota",
    "Standin",
    "Subscriptions",
    "Unknown",
    "create_app",
    "events_between",
    "main",
    "serve",
    "signed",
]
