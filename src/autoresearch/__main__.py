"""`python -m autoresearch`: the command line of exactly this Python, whatever is on the path."""

from autoresearch.cli import main

if __name__ == "__main__":
    main()
