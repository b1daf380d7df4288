"""`python -m leftover`, which launchers start: `torchrun -m leftover run recipe.yaml`."""

from leftover.cli import main

main()
