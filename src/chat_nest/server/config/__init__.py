"""The configuration: the TOML file, the environment, and what the server gets from them."""
