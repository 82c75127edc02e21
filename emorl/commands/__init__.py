"""The subcommands of `emorl`: each module has `run(arguments) -> exit code`."""
