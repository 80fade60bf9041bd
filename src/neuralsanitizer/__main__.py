"""``python -m neuralsanitizer``: the same program."""

from neuralsanitizer.cli.main import main

if __name__ == "__main__":
    main()
