"""Run files: one frozen model per section, read from TOML once, refused with every fault at once."""
