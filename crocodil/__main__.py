"""`python -m crocodil`, and `accelerate launch -m crocodil reproduce …` on several processes."""

import sys

from crocodil.cli import main

sys.exit(main())
