"""The worker's command line from a checkout; the same commands as the installed ``svc-worker``."""

from svc_infra.cli import main

if __name__ == "__main__":
    main()
