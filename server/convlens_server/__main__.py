"""`python -m convlens_server`."""

from convlens_server.start import prepare

if __name__ == "__main__":
    # Before the imports, which read what it sets.
    prepare()

    from convlens_server.main import main

    raise SystemExit(main())
