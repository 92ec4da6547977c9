"""Names that files and folders have, and that users type: here, where a command finds them without loading anything."""

from __future__ import annotations

DEMO = "demo"  # the model that ships with hybrid, wherever a model directory is expected
MANIFEST = "model.json"  # what makes a folder a model directory
# What later stages write into one, folder -> suffix; pack makes the folders.
ADDED = {
    "profiles": ".safetensors",
    "predictors": ".safetensors",
    "plans": ".json",
    "evaluations": ".json",
    "thresholds": ".json",
}
