"""The command line: one thin file per subcommand. Nothing here imports torch or Diffusers before a command needs it."""
