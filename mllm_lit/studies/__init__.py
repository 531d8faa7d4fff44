"""Studies: many runs from one file, each known by what it depends on, and the report of what came out."""
