"""`python -m demeanor`."""

from demeanor.cli import main

raise SystemExit(main())
