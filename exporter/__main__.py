"""`python -m exporter` is the command `capgo-exporter`."""

from exporter.cli import main

if __name__ == "__main__":
    main()
