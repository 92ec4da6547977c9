"""The papers' rows, rebuilt with this project's cost model."""
