"""`python -m hfd_edge`, which is what torchrun starts."""

from hfd_edge.cli import main

if __name__ == "__main__":
    main()
