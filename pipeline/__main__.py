"""Start the command line: ``python -m pipeline`` is `flyweight`."""

from pipeline.cli.main import run

if __name__ == "__main__":
    run()
