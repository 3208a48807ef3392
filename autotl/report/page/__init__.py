"""The report on a study as one HTML file: facts as plain data, then a template."""
