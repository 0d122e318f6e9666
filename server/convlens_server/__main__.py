"""`python -m convlens_server`."""

import os

# Without gRPC's newer way of waiting for sockets, which hands each event to another thread, a call costs 10 µs less.
# gRPC reads this when it is imported. The switch is past its date in gRPC's list; a grpcio that has it no more says so
# in one line and goes on.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

from convlens_server.main import main

if __name__ == "__main__":
    raise SystemExit(main())
