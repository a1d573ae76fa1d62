"""`python -m golf` is `golf`: what torchrun starts on every rank."""

from golf.cli import main

if __name__ == "__main__":
    main()
