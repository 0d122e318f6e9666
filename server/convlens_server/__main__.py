"""`python -m convlens_server`."""

from convlens_server.main import main

if __name__ == "__main__":
    raise SystemExit(main())
