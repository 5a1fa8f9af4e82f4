"""`python -m polyrec` is `polyrec`."""

from polyrec.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
