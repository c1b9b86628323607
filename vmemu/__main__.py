"""``python -m vmemu``."""

from vmemu.cli import main

if __name__ == "__main__":
    main()
