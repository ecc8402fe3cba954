"""The version of pvcbench."""

VERSION = "0.1.0"
