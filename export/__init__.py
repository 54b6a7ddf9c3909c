"""ONNX export of a policy, imported as smolvla_edge.export. Importing this package needs nothing;
a file of it that needs a package of the extra `export` says so in a MissingExtraError.
"""
