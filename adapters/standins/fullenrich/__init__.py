"""A runnable stand-in of FullEnrich: `python -m adapters.standins.fullenrich --port 0`.

Reverse look-up in batches, with the real API's shapes, limits, errors, signatures and callbacks. What the real API does not have lives under
`/_standin/`: `ledger`, `stats`, `credits`, `finish`, `callback`, `speak`, `gates`, `settle`.
"""

from adapters.standins.fullenrich.app import create_app
from adapters.standins.fullenrich.faults import Faults
from adapters.standins.fullenrich.ledger import Ledger
from adapters.standins.fullenrich.people import profile_of
from adapters.standins.fullenrich.serving import main
from adapters.standins.listening import serve

__all__ = ["Faults", "Ledger", "create_app", "main", "profile_of", "serve"]
