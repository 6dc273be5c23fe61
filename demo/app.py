from genkit.cli.main import main

raise SystemExit(main(["demo"]))
