"""Keeps gRPC's own log off the terminal; imported before anything that loads gRPC.

Its C core writes lines such as "Got goaway" to standard error when a gateway restarts, into the live view.
Whoever wants them sets GRPC_VERBOSITY. The core reads its environment once, when it is loaded.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
