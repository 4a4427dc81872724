"""What people look at: console output, curves, pictures and the HTML report.

Import the modules themselves; `report.console` is all that a running command needs, and the rest stays
unloaded until something is drawn.
"""
