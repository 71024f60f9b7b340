"""`python -m openxlstm` is the command openxlstm."""

from openxlstm.cli import main

main()
