"""The documentation: its commands run, its reference is fresh, its links hold, its site builds."""
