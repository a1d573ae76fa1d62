"""Will this machine do? Checks of what a run needs, each with the value found and a remedy; no setting is changed."""
