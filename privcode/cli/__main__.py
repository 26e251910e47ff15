"""``python -m privcode.cli``: the command line where the script is not on the path."""

from privcode.cli import app

app(prog_name="privcode")
