"""One file per command, joining the packages."""
