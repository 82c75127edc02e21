"""The work of a model of ours in a peer's own code, from a checkout that the user has."""
