"""``python -m raybone`` is the command line."""

from raybone.cli import run

if __name__ == "__main__":
    run()
