"""The command line: one thin file per subcommand; the logic lives in `tide_cache`."""
