"""The documents' commands and figures: found, run, put in, compared."""
