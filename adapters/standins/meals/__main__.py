"""`python -m adapters.standins.meals`."""

import argparse
import signal
from typing import cast, get_args

from adapters.standins.listening import serve
from adapters.standins.meals.app import create_app
from adapters.standins.meals.catalogue import Catalogue
from adapters.standins.meals.faults import Faults, Level
from adapters.standins.meals.records import Records

parser = argparse.ArgumentParser(prog="meals", description="A stand-in of the order service.")
parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
parser.add_argument("--seed", type=int, default=7, help="decides which rows fail, and the faults")
parser.add_argument("--bad", type=int, default=10, help="so many of a thousand rows fail")
parser.add_argument("--faults", choices=get_args(Level), default="none")
parser.add_argument("--token", default="token")
chosen = parser.parse_args()
records = Records(Catalogue(chosen.seed, chosen.bad))
with serve(create_app(records, Faults(cast(Level, chosen.faults), chosen.seed), chosen.token), chosen.port) as url:
    print(f"listening on {url}", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
