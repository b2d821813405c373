"""``python -m frostline.cli``: the same as the console script."""

from frostline.cli import main

main()
