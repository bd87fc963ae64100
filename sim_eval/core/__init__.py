"""The ground floor, which every room may import and which imports none: types, errors, files, versions."""
