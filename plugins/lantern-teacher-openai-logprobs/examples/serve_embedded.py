"""Serves the embedded SmolLM2-135M with llama.cpp, to try the teacher on a laptop. Stop it with Ctrl-C.

Needs `pip install xllamacpp`, a llama.cpp server in a wheel.
"""

import argparse
import importlib.util
import sys
import threading
from pathlib import Path

from lantern_pl.embedded import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, default=8080)
parser.add_argument("--slots", type=int, default=2, help="sequences that it works on side by side")
parser.add_argument("--context", type=int, default=1024, help="tokens of each")
parser.add_argument("--threads", type=int, default=1, help="more only on idle cores: they wait for each other")
arguments = parser.parse_args()

try:
    import xllamacpp
except ImportError:
    sys.exit("xllamacpp isn't installed: pip install xllamacpp")

embedded = MODELS["smollm2-135m"]
package = importlib.util.find_spec(embedded.package)
if package is None or package.origin is None:
    sys.exit("The embedded model isn't installed: run `make models` in lantern-pl.")

params = xllamacpp.CommonParams()
params.model.path = str(Path(package.origin).parent / embedded.weights)
params.model_alias = {"smollm2-135m-q4_1"}
params.hostnames = ["127.0.0.1"]
params.port = arguments.port
params.n_parallel = arguments.slots
params.n_ctx = arguments.slots * arguments.context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
# The model is small and its memory given: neither is to be found out first.
params.fit_params = params.warmup = False
server = xllamacpp.Server(params)
print(f"Serving at {server.listening_address}", flush=True)
threading.Event().wait()
