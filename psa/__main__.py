"""``python -m psa``: the command line, also from a bare checkout."""

from psa.cli import main

if __name__ == "__main__":
    main()
