"""`python -m adapters.standins.s3`."""

import argparse
import logging
import signal

from moto.server import ThreadedMotoServer

parser = argparse.ArgumentParser(prog="s3", description="S3 in memory.")
parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=parser.parse_args().port, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"listening on http://{host}:{port}", flush=True)
signal.sigwait({signal.SIGINT, signal.SIGTERM})
server.stop()
